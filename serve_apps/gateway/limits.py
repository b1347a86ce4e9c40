"""OpenAI's `x-ratelimit-*` headers. Owns: their names and how they write durations. Must not know: the policy."""

from __future__ import annotations

import math

from cluster.scheduling import RateLimitState

Headers = list[tuple[bytes, bytes]]


def rate_limit_headers(state: RateLimitState | None) -> Headers:
    """What is left of the tenant's limits; limits that it does not have are left out."""
    if state is None:
        return []
    counts = (
        (b"limit-requests", state.limit_requests),
        (b"limit-tokens", state.limit_tokens),
        (b"remaining-requests", state.remaining_requests),
        (b"remaining-tokens", state.remaining_tokens),
    )
    resets = ((b"reset-requests", state.reset_requests_s), (b"reset-tokens", state.reset_tokens_s))
    headers = [(b"x-ratelimit-" + name, b"%d" % max(0, value)) for name, value in counts if value is not None]
    return headers + [(b"x-ratelimit-" + name, duration(value).encode()) for name, value in resets if value is not None]


def duration(seconds: float) -> str:
    """As OpenAI writes it: `20ms`, `1s`, `7.66s`, `6m0s`, `1h0m0s`. Rounded up: that long is always enough."""
    milliseconds = max(0, math.ceil(round(seconds * 1000, 6)))
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text

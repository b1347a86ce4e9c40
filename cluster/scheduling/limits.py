"""Limits of one tenant: token buckets for rates, daily budgets, bounds for what runs and waits.

A bucket of `per_minute` holds one minute's worth and refills evenly, so a tenant may burst for a minute's allowance and
is then held to the rate. An amount larger than the bucket passes when the bucket is full and leaves a debt: otherwise
it could never pass. A budget refuses once what was spent today (UTC) has reached it; what waits or runs by then goes
on, so it is overrun by at most that and what ends between two reports of the sums.

Owns: the buckets, the sums of the day, the tenant's drain rate. Must not know: queues, classes, HTTP.
"""

from __future__ import annotations

from cluster.scheduling.rates import RateMeter
from cluster.scheduling.types import RateLimitState, TenantLimits

DAY_S = 86_400.0
DRAIN_TAU_S = 30.0
UNLIMITED = TenantLimits()


class TokenBucket:
    """`per_minute` units a minute, at most one minute's worth at once."""

    __slots__ = ("_level", "_rate_per_s", "_updated_s", "capacity")

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.capacity = per_minute
        self._rate_per_s = per_minute / 60.0
        self._level = float(per_minute)
        self._updated_s = now_s

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until `amount` would pass; 0.0 when it passes now."""
        self._refill(now_s)
        missing = min(amount, self.capacity) - self._level
        return max(0.0, missing / self._rate_per_s)

    def take(self, amount: float, now_s: float) -> None:
        """Take `amount` (negative gives back); the level may go below zero."""
        self._refill(now_s)
        self._level = min(self.capacity, self._level - amount)

    def remaining(self, now_s: float) -> int:
        self._refill(now_s)
        return max(0, int(self._level))

    def full_in_s(self, now_s: float) -> float:
        """Seconds until the whole allowance is back."""
        self._refill(now_s)
        return (self.capacity - self._level) / self._rate_per_s

    def _refill(self, now_s: float) -> None:
        if now_s > self._updated_s:
            self._level = min(self.capacity, self._level + (now_s - self._updated_s) * self._rate_per_s)
            self._updated_s = now_s


class TenantAccount:
    """Counts what a tenant runs and waits for, and keeps its limits."""

    __slots__ = (
        "_requests",
        "_tokens",
        "backlog_tokens",
        "drain",
        "limited",
        "limits",
        "queued",
        "running",
        "spent_day",
        "spent_tokens",
        "spent_usd",
    )

    def __init__(self, limits: TenantLimits, now_s: float) -> None:
        self.running = 0
        self.queued = 0
        self.backlog_tokens = 0
        self.drain = RateMeter(DRAIN_TAU_S)
        self.spent_day = now_s // DAY_S
        self.spent_tokens = 0
        self.spent_usd = 0.0
        self.apply(limits, now_s)

    def apply(self, limits: TenantLimits, now_s: float) -> None:
        """New limits: the buckets start full, counts and sums stay."""
        self.limits = limits
        self.limited = limits != UNLIMITED
        """Most tenants have no limits: then nothing below needs to be looked at."""
        self._requests = TokenBucket(limits.requests_per_minute, now_s) if limits.requests_per_minute else None
        self._tokens = TokenBucket(limits.tokens_per_minute, now_s) if limits.tokens_per_minute else None

    # --- what waits and what runs ---------------------------------------------------------------------------------

    def came(self, tokens: int) -> None:
        """A ticket waits from now on for which limits count `tokens`."""
        self.queued += 1
        self.backlog_tokens += tokens

    def left(self, tokens: int) -> None:
        """It waits no more."""
        self.queued -= 1
        self.backlog_tokens -= tokens

    def started(self, tokens: int, now_s: float) -> None:
        """It waits no more: it runs."""
        self.queued -= 1
        self.backlog_tokens -= tokens
        self.running += 1
        self.drain.add(tokens, now_s)

    # --- what is left ---------------------------------------------------------------------------------------------

    @property
    def may_run(self) -> bool:
        return self.limits.max_concurrent is None or self.running < self.limits.max_concurrent

    @property
    def may_queue(self) -> bool:
        return self.limits.max_queued is None or self.queued < self.limits.max_queued

    def rate_wait_s(self, tokens: float, now_s: float) -> tuple[float, str]:
        """Seconds until a request of `tokens` passes the rate limits, and the name of the limit that binds."""
        if self._requests is None and self._tokens is None:
            return 0.0, ""
        waits = [(0.0, "")]
        if self._requests:
            waits.append((self._requests.wait_s(1, now_s), "requests_per_minute"))
        if self._tokens:
            waits.append((self._tokens.wait_s(tokens, now_s), "tokens_per_minute"))
        return max(waits)

    def take(self, tokens: float, now_s: float, requests: int = 1) -> None:
        """Use up the allowance; a correction has `requests=0` and the difference in tokens. Negative: give back."""
        if self._requests and requests:
            self._requests.take(requests, now_s)
        if self._tokens and tokens:
            self._tokens.take(tokens, now_s)

    def set_spent(self, tokens: int, usd: float, now_s: float) -> None:
        self.spent_day, self.spent_tokens, self.spent_usd = now_s // DAY_S, tokens, usd

    def spend(self, tokens: int, now_s: float) -> None:
        """Count tokens at once that the next report of the sums will contain."""
        if now_s // DAY_S == self.spent_day:
            self.spent_tokens += tokens

    def exhausted(self, now_s: float) -> str | None:
        """The name of the daily budget that is used up."""
        limits = self.limits
        if now_s // DAY_S != self.spent_day:
            return None
        if limits.tokens_per_day is not None and self.spent_tokens >= limits.tokens_per_day:
            return "tokens_per_day"
        if limits.usd_per_day is not None and self.spent_usd >= limits.usd_per_day:
            return "usd_per_day"
        return None

    def rate_limits(self, now_s: float) -> RateLimitState | None:
        """What headers say; None for a tenant without rate limits."""
        requests, tokens = self._requests, self._tokens
        if requests is None and tokens is None:
            return None
        return RateLimitState(
            limit_requests=requests.capacity if requests else None,
            remaining_requests=requests.remaining(now_s) if requests else None,
            reset_requests_s=requests.full_in_s(now_s) if requests else None,
            limit_tokens=tokens.capacity if tokens else None,
            remaining_tokens=tokens.remaining(now_s) if tokens else None,
            reset_tokens_s=tokens.full_in_s(now_s) if tokens else None,
        )

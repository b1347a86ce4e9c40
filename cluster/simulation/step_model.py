"""How long an engine's step takes, and how long many equal steps take, in closed form.

    t = base + prefill * (prompt tokens computed) + request * n + kv * (tokens in the cache of the n that decode)

While nothing joins or leaves, each of n requests gets a token a step, so the cache grows by n, and k steps take

    S(k) = k * first + growth * k * (k - 1) / 2      first = base + request * n + kv * held,  growth = kv * n

`first_boundary(x)` is the least k with S(k) >= x: the root of S(k) = x, corrected by the rounding of floats.

Owns: these formulas. Must not know: who is in the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


def span_s(steps: int, first_s: float, growth_s: float) -> float:
    """S(k)."""
    return steps * first_s + growth_s * (steps * (steps - 1) / 2)


def first_boundary(seconds: float, first_s: float, growth_s: float) -> int:
    """Least number of steps, one or more, that take at least so long."""
    if growth_s:
        slope = first_s - growth_s / 2
        steps = math.ceil((math.sqrt(slope * slope + 2 * growth_s * seconds) - slope) / growth_s)
    else:
        steps = math.ceil(seconds / first_s)
    if steps < 1:
        steps = 1
    while steps > 1 and span_s(steps - 1, first_s, growth_s) >= seconds:
        steps -= 1
    while span_s(steps, first_s, growth_s) < seconds:
        steps += 1
    return steps


@dataclass(frozen=True, slots=True)
class StepModel:
    """Seconds of one engine step; all parts are zero or more."""

    base_s: float
    prefill_s_a_token: float
    decode_s_a_request: float
    decode_s_a_kv_token: float

    def __post_init__(self) -> None:
        for name in PARTS:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} of a step model must be zero or more, got {getattr(self, name)}")
        if self.base_s + self.decode_s_a_request + self.decode_s_a_kv_token <= 0:
            raise ValueError("a decode step takes no time: give base_s, decode_s_a_request or decode_s_a_kv_token")

    def step_s(self, prefill_tokens: int, decoding: int, kv_tokens: int) -> float:
        return (
            self.base_s
            + self.prefill_s_a_token * prefill_tokens
            + self.decode_s_a_request * decoding
            + self.decode_s_a_kv_token * kv_tokens
        )

    def jump_s(self, steps: int, decoding: int, kv_tokens: int) -> float:
        """`steps` decode steps of the same requests, which hold `kv_tokens` at the beginning."""
        return span_s(steps, self.step_s(0, decoding, kv_tokens), self.decode_s_a_kv_token * decoding)

    def steps_until(self, seconds: float, decoding: int, kv_tokens: int) -> int:
        """Least number of such steps, one or more, that take at least so long."""
        return first_boundary(seconds, self.step_s(0, decoding, kv_tokens), self.decode_s_a_kv_token * decoding)


PARTS = tuple(field.name for field in fields(StepModel))

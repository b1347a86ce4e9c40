"""Limits of one tenant: token buckets for rates, bounds for what runs and waits.

A bucket of `per_minute` holds one minute's worth and refills evenly, so a tenant may burst for a minute's allowance and
is then held to the rate. An amount larger than the bucket passes when the bucket is full and leaves a debt: otherwise
it could never pass.

Owns: the buckets. Must not know: queues, classes, HTTP.
"""

from __future__ import annotations

from cluster.scheduling.types import TenantLimits


class TokenBucket:
    """`per_minute` units a minute, at most one minute's worth at once."""

    __slots__ = ("_capacity", "_level", "_rate_per_s", "_updated_s")

    def __init__(self, per_minute: float, now_s: float) -> None:
        self._capacity = per_minute
        self._rate_per_s = per_minute / 60.0
        self._level = per_minute
        self._updated_s = now_s

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until `amount` would pass; 0.0 when it passes now."""
        self._refill(now_s)
        missing = min(amount, self._capacity) - self._level
        return max(0.0, missing / self._rate_per_s)

    def take(self, amount: float, now_s: float) -> None:
        """Take `amount` (negative gives back); the level may go below zero."""
        self._refill(now_s)
        self._level = min(self._capacity, self._level - amount)

    def _refill(self, now_s: float) -> None:
        if now_s > self._updated_s:
            self._level = min(self._capacity, self._level + (now_s - self._updated_s) * self._rate_per_s)
            self._updated_s = now_s


class TenantAccount:
    """Counts what a tenant runs and waits for, and keeps its rate limits."""

    __slots__ = ("_requests", "_tokens", "limits", "queued", "running")

    def __init__(self, limits: TenantLimits, now_s: float) -> None:
        self.limits = limits
        self.running = 0
        self.queued = 0
        self._requests = TokenBucket(limits.requests_per_minute, now_s) if limits.requests_per_minute else None
        self._tokens = TokenBucket(limits.tokens_per_minute, now_s) if limits.tokens_per_minute else None

    @property
    def may_run(self) -> bool:
        return self.limits.max_concurrent is None or self.running < self.limits.max_concurrent

    @property
    def may_queue(self) -> bool:
        return self.limits.max_queued is None or self.queued < self.limits.max_queued

    def rate_wait_s(self, tokens: float, now_s: float) -> tuple[float, str]:
        """Seconds until a request of `tokens` passes the rate limits, and the name of the limit that binds."""
        waits = [(0.0, "")]
        if self._requests:
            waits.append((self._requests.wait_s(1, now_s), "requests_per_minute"))
        if self._tokens:
            waits.append((self._tokens.wait_s(tokens, now_s), "tokens_per_minute"))
        return max(waits)

    def take(self, tokens: float, now_s: float, requests: int = 1) -> None:
        """Use up the allowance; a correction has `requests=0` and the difference in tokens."""
        if self._requests and requests:
            self._requests.take(requests, now_s)
        if self._tokens and tokens:
            self._tokens.take(tokens, now_s)

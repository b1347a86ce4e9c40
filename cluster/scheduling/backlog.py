"""How long a replica's first token would take: prompt tokens given to it and not yet prefilled, over the measured rate.

    work(t)  = max(0, work(t0) - R * (t - t0))           + uncached tokens of each request given to it
    R        = sum(tokens) / sum(seconds)                 over requests whose first token was seen, older ones fading
    delay    = work / R

A request's tokens for R are those that had to be prefilled before its first token: its own and those ahead of it. So a
rate that is too low makes the work look larger, the next samples faster, and R rises; too high, and it falls. Nothing
is asked of the replica, and nothing need be told about requests that do not stream.

Owns: work per replica, rates per deployment. Must not know: who is placed where, and why.
"""

from __future__ import annotations

from cluster.scheduling.replica_pools import Seat

FIRST_GUESS_PER_S = 8000.0
"""Prompt tokens a second, until something was measured: a model of 8 billion parameters on one GPU does more. Guessing
high for a slow engine means to stay with warm replicas for longer, which bounded slots keep harmless."""
KEPT = 0.95
"""Part of the sums that one more sample leaves: about the last 20 count."""
LEAST_TOKENS = 256.0
"""Shorter prefills say more about an engine's overhead than about its rate."""


class PrefillRate:
    """Prompt tokens a second of one deployment's replicas."""

    __slots__ = ("_seconds", "_tokens", "per_s")

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self.per_s = FIRST_GUESS_PER_S

    def observe(self, tokens: float, seconds: float) -> None:
        """`tokens` were prefilled in `seconds`."""
        if tokens >= LEAST_TOKENS and seconds > 0:
            self._tokens = KEPT * self._tokens + tokens
            self._seconds = KEPT * self._seconds + seconds
            self.per_s = self._tokens / self._seconds


class _Work:
    __slots__ = ("at_s", "tokens")

    def __init__(self) -> None:
        self.tokens = 0.0
        self.at_s = 0.0


class PrefillBacklog:
    """Work of every replica of a queue."""

    def __init__(self) -> None:
        self._work: dict[str, _Work] = {}
        self._rates: dict[str, PrefillRate] = {}

    def __len__(self) -> int:
        return len(self._work)

    def rate(self, deployment: str) -> PrefillRate:
        rate = self._rates.get(deployment)
        if rate is None:
            rate = self._rates[deployment] = PrefillRate()
        return rate

    def ahead(self, seat: Seat, now_s: float) -> float:
        """Prompt tokens that the replica has still to prefill."""
        work = self._work.get(seat.replica_id)
        if work is None or not seat.replica.running:
            return 0.0
        left = work.tokens - self.rate(seat.replica.deployment).per_s * max(0.0, now_s - work.at_s)
        return left if left > 0 else 0.0

    def delay_s(self, seat: Seat, tokens: float, now_s: float) -> float:
        """Seconds until a prompt with `tokens` that are not cached there would have its first token."""
        replica = seat.replica
        rate = self._rates.get(replica.deployment)
        per_s = rate.per_s if rate is not None else FIRST_GUESS_PER_S
        work = self._work.get(seat.replica_id)
        # As in `ahead`; this is asked of several replicas in every decision.
        if work is not None and replica.running:
            left = work.tokens - per_s * max(0.0, now_s - work.at_s)
            if left > 0:
                tokens += left
        return tokens / per_s

    def give(self, seat: Seat, tokens: float, now_s: float) -> float:
        """The replica gets a request with so many tokens to prefill; returns those ahead of it."""
        ahead = self.ahead(seat, now_s)
        work = self._work.get(seat.replica_id)
        if work is None:
            work = self._work[seat.replica_id] = _Work()
        work.tokens, work.at_s = ahead + tokens, now_s
        return ahead

    def forget_replica(self, replica_id: str) -> None:
        self._work.pop(replica_id, None)

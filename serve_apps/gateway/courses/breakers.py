"""Circuit breakers: a replica that fails request after request is left alone for a while.

    closed     `failures` in a row open it for `open_s`
    open       new requests avoid the replica (softly: where no other serves them, it is asked all the same)
    half-open  once that time is over: the next outcome decides; a failure opens it for twice as long as the last time,
               up to `max_open_s`, a success closes it and forgets

A replica that is not heard of for `FORGET_S` after it could have been asked again is gone, and forgotten.

Failures of what began before the time was over change nothing: of the streams that a dying replica takes along the
first few open the breaker, and those who ask it all the same while it is open must not make it last for ever longer.
Good news counts from the moment at which it opened.

Pure: the clock comes with each call. Owns: the breakers of one model in one gateway. Must not know: what a failure is.
While no replica fails, every call is a look into an empty dictionary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

FORGET_S = 60.0


@dataclass(slots=True)
class _Breaker:
    failures: int = 0
    open_until_s: float | None = None
    opened_at_s: float = float("-inf")
    open_for_s: float = 0.0
    heard_at_s: float = 0.0


class Breakers:
    """One breaker for each replica that has failed lately."""

    def __init__(
        self,
        failures: int,
        open_s: float,
        max_open_s: float,
        opened: Callable[[str, float], None] = lambda replica_id, open_for_s: None,
    ) -> None:
        """`opened` hears of each opening, and for how many seconds it is."""
        self._failures = failures
        self._open_s = open_s
        self._max_open_s = max_open_s
        self._opened = opened
        self._breakers: dict[str, _Breaker] = {}

    def open(self, now_s: float) -> tuple[str, ...]:
        """Replicas to avoid now."""
        if not self._breakers:
            return ()
        self._forget(now_s)
        return tuple(i for i, b in self._breakers.items() if b.open_until_s is not None and b.open_until_s > now_s)

    def succeeded(self, replica_id: str, began_at_s: float) -> None:
        """A request that began at that time got an answer from the replica."""
        breaker = self._breakers.get(replica_id) if self._breakers else None
        if breaker is not None and began_at_s >= breaker.opened_at_s:
            del self._breakers[replica_id]

    def failed(self, replica_id: str, began_at_s: float, now_s: float) -> None:
        """The replica failed a request that began at `began_at_s`."""
        breaker = self._breakers.setdefault(replica_id, _Breaker())
        breaker.heard_at_s = now_s
        if breaker.open_until_s is not None and began_at_s < breaker.open_until_s:
            return
        breaker.failures += 1
        if breaker.open_until_s is None and breaker.failures < self._failures:
            return
        breaker.open_for_s = min(self._max_open_s, 2 * breaker.open_for_s or self._open_s)
        breaker.opened_at_s = now_s
        breaker.open_until_s = now_s + breaker.open_for_s
        self._opened(replica_id, breaker.open_for_s)

    def _forget(self, now_s: float) -> None:
        for replica_id, breaker in list(self._breakers.items()):
            if now_s - max(breaker.heard_at_s, breaker.open_until_s or 0.0) > FORGET_S:
                del self._breakers[replica_id]

"""What a replica does when it has enough to do: service per second while requests wait for it.

Formula: `sum(service) / sum(seconds)` over stretches of time in which somebody waited, fading with `MEMORY_S` of such
time. A stretch counts from the moment at which a request that began `SETTLE_S` into it has ended: before that the
replica is still filling, and work that will be reported later looks like none. This is what one more replica would add.
The best rate ever seen is not: noise raises it, and under light load it is the load that is measured. Idle time fades
nothing: a deployment that was scaled to zero still knows its speed.

Owns: the measurement for all replicas of one deployment together. Must not know: who waits, how many replicas there
should be.
"""

from __future__ import annotations

import math

MEMORY_S = 60.0
SETTLE_S = 2.0
LEAST_S = 3.0
"""Of busy time, before the rate is believed."""
LONGEST_GAP_S = 5.0
"""Between two reports of work; with a longer one nobody knows whether the replica was busy all the time."""


class BusyRate:
    """Service per second of a busy replica."""

    __slots__ = ("_measured_s", "_seconds", "_service", "_stretches")

    def __init__(self) -> None:
        self._service = self._seconds = self._measured_s = 0.0
        self._stretches: dict[str, tuple[float, float, bool]] = {}
        """By replica: when the busy stretch began, the latest report in it, and whether it counts."""

    def note(self, replica_id: str, service: float, busy: bool, now_s: float, ended: float | None = None) -> None:
        """The replica reports work done; `busy`: somebody waits for it now; `ended`: the report is of the end of a
        request that began at that time."""
        if not busy:
            self._stretches.pop(replica_id, None)
            return
        began_s, last_s, counts = self._stretches.get(replica_id, (now_s, now_s, False))
        if now_s - last_s > LONGEST_GAP_S:
            began_s, last_s, counts = now_s, now_s, False
        full = counts or (ended is not None and ended >= began_s + SETTLE_S)
        self._stretches[replica_id] = began_s, now_s, full
        if not counts:
            return
        elapsed_s = now_s - last_s
        kept = math.exp(-elapsed_s / MEMORY_S)
        self._service = self._service * kept + service
        self._seconds = self._seconds * kept + elapsed_s
        self._measured_s += elapsed_s

    def forget_replica(self, replica_id: str) -> None:
        self._stretches.pop(replica_id, None)

    def rate(self) -> float:
        """0.0 while unknown."""
        return self._service / self._seconds if self._measured_s >= LEAST_S else 0.0

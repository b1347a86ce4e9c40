"""What a gateway or worker process did about replicas that failed. Owns: the counter. Must not know: what a failure is.

Nothing of it is on the path of a request that goes well, so each event is told at once.
"""

from __future__ import annotations

from ray.util.metrics import Counter


class FailoverMetrics:
    """One counter for all events: they are read side by side, and few."""

    def __init__(self) -> None:
        self._events = Counter("tribes_failover_total", "What was done about failing replicas", ("model", "event"))

    def happened(self, model: str, event: str) -> None:
        self._events.inc(1, {"model": model, "event": event})

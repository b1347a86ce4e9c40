"""What the dispatcher measures. Owns: queue, lease and replica metrics of one model. Must not know: how leases are
granted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ray.util.metrics import Counter, Gauge, Histogram

from cluster.scheduling import Lease, Refusal, RequestQueue, Ticket

if TYPE_CHECKING:
    from serve_apps.messages import ReplicaReport

WAIT_BUCKETS_S = [0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600]
START_BUCKETS_S = [1, 2, 5, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600]
_WHO = ("model", "request_class", "tenant")


class QueueMetrics:
    """Counters and levels of one model's queue."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._wait = Histogram("tribes_queue_wait_seconds", "Wait for a lease", WAIT_BUCKETS_S, _WHO)
        self._refused = Counter("tribes_refusals_total", "Requests refused by the queue", (*_WHO, "code"))
        self._depth = Gauge("tribes_queue_depth", "Requests waiting", _WHO)
        self._running = Gauge("tribes_running_requests", "Requests running", _WHO)
        self._service = Gauge("tribes_service", "Virtual token counter: weighted service per weight", _WHO)
        self._replicas = Gauge("tribes_replicas", "Replicas by state", ("model", "deployment", "state"))
        self._starts = Histogram(
            "tribes_cold_start_seconds",
            "From the start of a replica to ready",
            START_BUCKETS_S,
            ("model", "deployment"),
        )
        self._shown: dict[Gauge, set[tuple[tuple[str, str], ...]]] = {}

    def granted(self, lease: Lease) -> None:
        self._wait.observe(lease.waited_s, self._tags(lease.ticket.request_class, lease.ticket.tenant))

    def refused(self, ticket: Ticket, refusal: Refusal) -> None:
        self._refused.inc(1, {**self._tags(ticket.request_class, ticket.tenant), "code": refusal.code})

    def cold_start(self, report: ReplicaReport) -> None:
        if report.cold_start_s is not None:
            self._starts.observe(report.cold_start_s, {"model": self._model, "deployment": report.deployment})

    def levels(self, queue: RequestQueue, reports: Iterable[ReplicaReport]) -> None:
        """Set all gauges; series that are no longer there go to 0 rather than stand still."""
        for gauge, per_class in (
            (self._depth, queue.waiting_by_tenant()),
            (self._running, queue.running_by_tenant()),
            (self._service, queue.counters()),
        ):
            values = {
                tuple(self._tags(request_class, tenant).items()): float(value)
                for request_class, tenants in per_class.items()
                for tenant, value in tenants.items()
            }
            self._set(gauge, values)
        states: dict[tuple[tuple[str, str], ...], float] = {}
        for report in reports:
            key = (("model", self._model), ("deployment", report.deployment), ("state", report.state))
            states[key] = states.get(key, 0.0) + 1
        self._set(self._replicas, states)

    def _set(self, gauge: Gauge, values: dict[tuple[tuple[str, str], ...], float]) -> None:
        for key in self._shown.get(gauge, set()) - set(values):
            gauge.set(0.0, dict(key))
        for key, value in values.items():
            gauge.set(value, dict(key))
        self._shown[gauge] = set(values)

    def _tags(self, request_class: str, tenant: str) -> dict[str, str]:
        return {"model": self._model, "request_class": str(request_class), "tenant": tenant}

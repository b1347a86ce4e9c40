"""What `tribes status` shows about one model, as plain data. Owns: its shape. Must not know: who decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.scheduling import RequestQueue, ScalingDecision
from serve_apps.prepaid_desk import PrepaidDesk
from serve_apps.replica_book import ReplicaBook


def queue_status(queue: RequestQueue) -> dict[str, Any]:
    """Classes with what waits, what runs and the service given, by tenant."""
    running, counters = queue.running_by_tenant(), queue.counters()
    return {
        c.value: {
            "waiting": queue.waiting(c),
            "waiting_by_tenant": waiting,
            "running_by_tenant": running.get(c, {}),
            "service_by_tenant": counters[c],
        }
        for c, waiting in queue.waiting_by_tenant().items()
    }


def replica_status(book: ReplicaBook, queue: RequestQueue, desk: PrepaidDesk, now_s: float) -> list[dict[str, Any]]:
    running: dict[str, int] = {}
    for lease in queue.leases():
        running[lease.replica_id] = running.get(lease.replica_id, 0) + 1
    return [
        {
            "replica_id": report.replica_id,
            "deployment": report.deployment,
            "state": report.state,
            "pid": report.pid,
            "running": running.get(report.replica_id, 0),
            "prepaid": desk.on_replica(report.replica_id),
            "age_s": now_s - report.started_at_s,
            "cold_start_s": report.cold_start_s,
            "kv_usage": report.kv_usage,
        }
        for report in book.reports()
    ]


def scaling_status(decisions: Mapping[str, ScalingDecision]) -> dict[str, Any]:
    return {name: {"replicas": d.replicas, "reason": d.reason} for name, d in decisions.items()}

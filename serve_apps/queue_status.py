"""What `tribes status` shows about one model, as plain data. Owns: its shape. Must not know: who decides."""

from __future__ import annotations

from collections import Counter
from typing import Any

from cluster.scheduling import RequestQueue
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
    running, prepaid = Counter(lease.replica_id for lease in queue.leases()), desk.per_replica()
    return [
        {
            "replica_id": report.replica_id,
            "deployment": report.deployment,
            "state": report.state,
            "pid": report.pid,
            "running": running[report.replica_id],
            "prepaid": prepaid[report.replica_id],
            "age_s": now_s - report.started_at_s,
            "cold_start_s": report.cold_start_s,
            "kv_usage": report.kv_usage,
        }
        for report in book.reports()
    ]

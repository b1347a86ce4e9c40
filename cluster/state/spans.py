"""The lives of replicas and what they cost. Owns: queries on them. Must not know: who used the replicas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, select

from cluster.state.tables import ReplicaSpanRow
from cluster.state.usage import DAY_S, Period


def replica_seconds(connection: Connection, period: Period, by_day: bool = False) -> list[dict[str, Any]]:
    """Seconds and dollars in a period, per deployment; `by_day`: and per day, with `day_s`, when it began."""
    columns = ("deployment", "model", "usd_per_hour", "started_at_s", "last_seen_at_s")
    query = select(*(getattr(ReplicaSpanRow, name) for name in columns))
    query = query.where(ReplicaSpanRow.last_seen_at_s >= period.since_s)
    if period.until_s is not None:
        query = query.where(ReplicaSpanRow.started_at_s < period.until_s)
    totals: dict[tuple[str, int | None], dict[str, Any]] = {}
    for deployment, model, usd_per_hour, started_at_s, last_seen_at_s in connection.execute(query):
        begin_s = max(started_at_s, period.since_s)
        end_s = last_seen_at_s if period.until_s is None else min(last_seen_at_s, period.until_s)
        for day_s, seconds in _days(begin_s, end_s) if by_day else [(None, end_s - begin_s)]:
            new = {"deployment": deployment, "model": model, "day_s": day_s, "seconds": 0.0, "usd": 0.0}
            total = totals.setdefault((deployment, day_s), new)
            total["seconds"] += seconds
            total["usd"] += seconds / 3600 * usd_per_hour
    return list(totals.values())


def _days(begin_s: float, end_s: float) -> Iterator[tuple[int, float]]:
    """(day, seconds of the stretch in it)."""
    for day_s in range(int(begin_s) // DAY_S * DAY_S, int(end_s) + 1, DAY_S):
        yield day_s, min(end_s, day_s + DAY_S) - max(begin_s, day_s)

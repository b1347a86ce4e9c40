"""The usage ledger: finished requests, and what they add up to. Owns: its rows and every query on them.

Must not know: prices, HTTP, how transactions are made.

A row is appended once: its id makes a repeated write harmless. Sums per hour are kept beside the rows, in the same
transaction, from what the database says it took. So a sum over days reads hours, not requests, and is still exact to
the token: the parts of hours at both ends of a period are read from the rows. A day begins at midnight UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, literal, select, union_all
from sqlalchemy.dialects import postgresql, sqlite

from cluster.state.tables import UsageHourRow, UsageRow

HOUR_S = 3600
DAY_S = 86400
DIMENSIONS = ("tenant", "key_id", "model", "deployment", "request_class")
PAGES = {"insertmanyvalues_page_size": 50}
"""Rows per INSERT: thousands of parameters in one statement cost PostgreSQL's driver more than the round trips."""
COUNTS = ("requests", "prompt_tokens", "cached_tokens", "output_tokens")
SUMMED = (*COUNTS, "upstream_usd")


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One finished request as the ledger keeps it; times in seconds, tokens as the engine reported them."""

    request_id: str
    tenant: str
    key_id: str
    model: str
    deployment: str
    request_class: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    queue_wait_s: float
    ttft_s: float | None
    duration_s: float
    status: int
    finished_at_s: float
    requests: int = 1
    """More than one in the record of a part of an offline job."""
    upstream_usd: float = 0.0
    """Paid to the upstream that served it; `deployment` is then `upstream:NAME`."""


@dataclass(frozen=True, slots=True)
class Period:
    """From `since_s` up to, not including, `until_s`; None: open."""

    since_s: float = 0.0
    until_s: float | None = None

    @property
    def begin_hour_s(self) -> int:
        """The first whole hour that begins in it."""
        hour_s = hour_of(self.since_s)
        return hour_s if hour_s == self.since_s else hour_s + HOUR_S

    @property
    def end_hour_s(self) -> int | None:
        """Where its last whole hour ends."""
        return None if self.until_s is None else hour_of(self.until_s)


def hour_of(at_s: float) -> int:
    """When the hour of this moment began. Whole seconds first: a quotient of floats could round up to the next."""
    return int(at_s) // HOUR_S * HOUR_S


def append(connection: Connection, records: Iterable[UsageRecord]) -> None:
    """Add the rows that are not there yet, and add them to the sums of their hours."""
    # Sorted, here and below: two writers that meet the same rows in different order would wait for each other for ever.
    rows = [asdict(record) for record in sorted(records, key=lambda record: record.request_id)]
    if not rows:
        return
    insert = _insert(connection)(UsageRow).on_conflict_do_nothing()
    taken = [getattr(UsageRow, name) for name in (*DIMENSIONS, *SUMMED, "finished_at_s")]
    sums: dict[tuple[Any, ...], list[float]] = {}
    for row in connection.execute(insert.returning(*taken), rows, execution_options=PAGES):
        names, counts, finished_at_s = row[: len(DIMENSIONS)], row[len(DIMENSIONS) : -1], row[-1]
        total = sums.setdefault((hour_of(finished_at_s), *names), [0] * len(SUMMED))
        for place, amount in enumerate(counts):
            total[place] += amount
    if sums:
        _add_to_hours(connection, sums)


def _add_to_hours(connection: Connection, sums: dict[tuple[Any, ...], list[float]]) -> None:
    names = ("hour_s", *DIMENSIONS)
    upsert = _insert(connection)(UsageHourRow)
    raised = {name: getattr(UsageHourRow, name) + upsert.excluded[name] for name in SUMMED}
    rows = [dict(zip((*names, *SUMMED), (*key, *sums[key]), strict=True)) for key in sorted(sums)]
    connection.execute(upsert.on_conflict_do_update(index_elements=names, set_=raised), rows)


def _insert(connection: Connection) -> Any:
    """Both dialects have the same `ON CONFLICT`, each in a class of its own."""
    return postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert


def sums(connection: Connection, period: Period, by: Sequence[str], tenant: str | None = None) -> list[dict[str, Any]]:
    """Requests, tokens and dollars paid upstream, per group. `by`: names in DIMENSIONS, and `day_s`, when it began."""
    # One statement: it sees the rows and the hours of one moment.
    pieces = union_all(*(_of_tenant(piece, tenant) for piece in _pieces(period))).subquery()
    columns = pieces.c
    day_s = (columns.hour_s - columns.hour_s % DAY_S).label("day_s")
    groups = [day_s if name == "day_s" else columns[name] for name in by]
    totals = [func.sum(columns[name]).label(name) for name in SUMMED]
    query = select(*groups, *totals).group_by(*groups).order_by(*groups)
    found = [dict(row._mapping) for row in connection.execute(query)]
    return [_plain(row) for row in found if row["requests"]]  # a sum over nothing, without groups, is a row of NULLs


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A sum of integers is a Decimal on PostgreSQL."""
    counts = {name: int(row[name]) for name in COUNTS}
    return {**row, **counts, "upstream_usd": float(row["upstream_usd"])}


def _of_tenant(piece: Select[Any], tenant: str | None) -> Select[Any]:
    return piece if tenant is None else piece.where(piece.selected_columns.tenant == tenant)


def _pieces(period: Period) -> list[Select[Any]]:
    """Rows that together are the period: whole hours from their sums, the rest from the ledger."""
    begin, end = period.begin_hour_s, period.end_hour_s
    at_s = UsageRow.finished_at_s
    if end is not None and period.until_s is not None and end < begin:  # inside one hour
        return [_rows(end, at_s >= period.since_s, at_s < period.until_s)]
    hours = [UsageHourRow.hour_s >= begin]
    pieces = []
    if period.since_s < begin:
        pieces.append(_rows(begin - HOUR_S, at_s >= period.since_s, at_s < begin))
    if end is not None and period.until_s is not None:
        hours.append(UsageHourRow.hour_s < end)
        pieces.append(_rows(end, at_s >= end, at_s < period.until_s))
    names = ("hour_s", *DIMENSIONS, *SUMMED)
    return [select(*(getattr(UsageHourRow, name) for name in names)).where(*hours), *pieces]


def _rows(hour_s: int, *where: ColumnElement[bool]) -> Select[Any]:
    columns = [getattr(UsageRow, name) for name in (*DIMENSIONS, *SUMMED)]
    return select(literal(hour_s).label("hour_s"), *columns).where(*where)


def records(connection: Connection, since_s: float) -> list[UsageRecord]:
    """Finished requests since a point in time, oldest first."""
    columns = [getattr(UsageRow, name) for name in UsageRecord.__dataclass_fields__]
    query = select(*columns).where(UsageRow.finished_at_s >= since_s).order_by(UsageRow.finished_at_s)
    return [UsageRecord(*row) for row in connection.execute(query)]

"""Batches: what was accepted, who works on it, and what is final. Owns: queries on `batches` and `batch_parts`.

Must not know: HTTP, queues, what is in the files. Every method is one transaction and short: a worker commits results
by the part, not by the line, so a batch of 50,000 lines is some hundred small transactions that SQLite takes easily.

Who may write: a worker claims a whole batch and gets its `fence`. Every write of a worker names the fence and changes
nothing if another worker has claimed the batch since (LostClaimError). So results are final once, whoever still runs.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from sqlalchemy import Connection, Engine, and_, delete, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from cluster.state.deferred_files import UNFINISHED, StoredFile
from cluster.state.deferred_tables import BatchPartRow, BatchRow, FileRow
from cluster.state.tables import TenantRow
from cluster.state.usage import UsageRecord, append


class LostClaimError(Exception):
    """The batch belongs to another worker now, takes no more results, or has ended."""


class InputGoneError(Exception):
    """The input file was deleted while the batch was being created."""


class TooManyBatchesError(Exception):
    """The tenant has as many unfinished batches as it may have."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch. Times in seconds since 1970; None: it has not come to that."""

    id: str
    tenant: str
    key_id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: str
    created_at_s: float
    expires_at_s: float
    extra: dict[str, str] | None = None
    output_expires_after_s: int | None = None
    model: str | None = None
    mode: str | None = None
    """`queue` or `job`; None: nothing was run yet."""
    problems: list[dict[str, Any]] | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at_s: float | None = None
    finalizing_at_s: float | None = None
    completed_at_s: float | None = None
    failed_at_s: float | None = None
    expired_at_s: float | None = None
    cancelling_at_s: float | None = None
    cancelled_at_s: float | None = None
    fence: int = 0


@dataclass(frozen=True, slots=True)
class BatchPart:
    """Final results: line `lines[i] // 2` of the input is answered by line i of the object; odd: with an error."""

    number: int
    object_name: str
    lines: array[int]


@dataclass(frozen=True, slots=True)
class Sums:
    """What results add up to."""

    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


class BatchBook:
    """All batches of all tenants. A batch of another tenant is not found, as one that never was."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # --- the API's side -------------------------------------------------------------------------------------------

    def create(self, batch: Batch, max_unfinished: int | None = None) -> None:
        """Accept a batch. InputGoneError, TooManyBatchesError."""
        with self._engine.begin() as connection:
            # Both change nothing and lock: the input cannot be deleted, nor two batches be counted as one.
            source = update(FileRow).where(FileRow.id == batch.input_file_id, FileRow.deleted_at_s.is_(None))
            if connection.execute(source.values(id=FileRow.id)).rowcount != 1:
                raise InputGoneError
            if max_unfinished is not None:
                connection.execute(update(TenantRow).where(TenantRow.name == batch.tenant).values(name=TenantRow.name))
                mine = and_(BatchRow.tenant == batch.tenant, BatchRow.status.in_(UNFINISHED))
                if (connection.scalar(select(func.count()).select_from(BatchRow).where(mine)) or 0) >= max_unfinished:
                    raise TooManyBatchesError
            connection.execute(insert(BatchRow).values(**asdict(batch), heartbeat_at_s=0.0))

    def get(self, tenant: str, batch_id: str) -> Batch | None:
        with self._engine.connect() as connection:
            return _one(connection, BatchRow.id == batch_id, BatchRow.tenant == tenant)

    def page(self, tenant: str, *, after: str | None, limit: int) -> list[Batch]:
        """Newest first."""
        query = select(*_COLUMNS).where(BatchRow.tenant == tenant)
        if after is not None:
            query = query.where(BatchRow.id < after)
        with self._engine.connect() as connection:
            return [Batch(*row) for row in connection.execute(query.order_by(BatchRow.id.desc()).limit(limit))]

    def cancel(self, tenant: str, batch_id: str, now_s: float) -> Batch | None:
        """Ask for its end; the batch as it is then. What has begun to finalize is left to finish."""
        mine = and_(BatchRow.id == batch_id, BatchRow.tenant == tenant)
        change = update(BatchRow).where(mine, BatchRow.status.in_(("validating", "in_progress")))
        with self._engine.begin() as connection:
            connection.execute(change.values(status="cancelling", cancelling_at_s=now_s))
            return _one(connection, mine)

    # --- the workers' side ----------------------------------------------------------------------------------------

    def claim(self, owner: str, now_s: float, stale_s: float, limit: int, per_tenant: int) -> list[Batch]:
        """Take batches that nobody works on. Tenants take turns, and none has more than `per_tenant` at work."""
        turn = func.row_number().over(partition_by=BatchRow.tenant, order_by=BatchRow.id).label("turn")
        every = select(BatchRow.id, BatchRow.owner, BatchRow.heartbeat_at_s, turn).where(
            BatchRow.status.in_(UNFINISHED)
        )
        queue = every.subquery()
        free = or_(queue.c.owner.is_(None), queue.c.heartbeat_at_s < now_s - stale_s)
        wanted = select(queue.c.id).where(free, queue.c.turn <= per_tenant).order_by(queue.c.turn, queue.c.id)
        with self._engine.connect() as connection:
            ids = list(connection.scalars(wanted.limit(limit)))
        claimed = [self._take(batch_id, owner, now_s, stale_s) for batch_id in ids]
        return [batch for batch in claimed if batch is not None]

    def _take(self, batch_id: str, owner: str, now_s: float, stale_s: float) -> Batch | None:
        free = or_(BatchRow.owner.is_(None), BatchRow.heartbeat_at_s < now_s - stale_s)
        change = update(BatchRow).where(BatchRow.id == batch_id, BatchRow.status.in_(UNFINISHED), free)
        with self._engine.begin() as connection:
            taken = connection.execute(change.values(owner=owner, fence=BatchRow.fence + 1, heartbeat_at_s=now_s))
            return _one(connection, BatchRow.id == batch_id) if taken.rowcount == 1 else None

    def beat(self, owner: str, batch_ids: Iterable[str], now_s: float) -> dict[str, str]:
        """Show that the owner is at work on these; the status of each that is still its.

        Only these: one whose claim was made and not heard of must grow stale, whoever claimed it.
        """
        mine = and_(BatchRow.id.in_(list(batch_ids)), BatchRow.owner == owner, BatchRow.status.in_(UNFINISHED))
        with self._engine.begin() as connection:
            connection.execute(update(BatchRow).where(mine).values(heartbeat_at_s=now_s))
            return {row.id: row.status for row in connection.execute(select(BatchRow.id, BatchRow.status).where(mine))}

    def release(self, batch_id: str, fence: int) -> None:
        """Give a batch back unfinished: another worker may take it at once."""
        with self._engine.begin() as connection:
            connection.execute(update(BatchRow).where(*_claimed(batch_id, fence)).values(owner=None))

    def begin(self, batch_id: str, fence: int, now_s: float, total: int, model: str | None, mode: str) -> Batch:
        """The input is good; the batch as it is then (it may have been cancelled meanwhile)."""
        with self._engine.begin() as connection:
            _change(connection, batch_id, fence, total=total, model=model, mode=mode)
            fresh = update(BatchRow).where(*_claimed(batch_id, fence), BatchRow.status == "validating")
            connection.execute(fresh.values(status="in_progress", in_progress_at_s=now_s))
            return _known(connection, batch_id)

    def fail(self, batch_id: str, fence: int, problems: list[dict[str, Any]], now_s: float) -> None:
        """The input is bad: nothing of it was run."""
        with self._engine.begin() as connection:
            _change(connection, batch_id, fence, status="failed", failed_at_s=now_s, problems=problems, owner=None)

    def add_part(self, batch_id: str, fence: int, part: BatchPart, sums: Sums, records: Iterable[UsageRecord]) -> None:
        """Make results final: the lines are answered and billed, or neither.

        LostClaimError also once the batch is being finalized, be it by the same claim: a commit that hung until then
        would bill lines that the error file reports as not run.
        """
        added = {name: getattr(BatchRow, name) + amount for name, amount in asdict(sums).items()}
        with self._engine.begin() as connection:
            _change(connection, batch_id, fence, BatchRow.finalizing_at_s.is_(None), **added)
            row = {"number": part.number, "object_name": part.object_name, "lines": part.lines.tobytes()}
            connection.execute(insert(BatchPartRow).values(batch_id=batch_id, **row))
            append(connection, records)

    def has_part(self, batch_id: str, number: int) -> bool:
        query = select(BatchPartRow.number).where(BatchPartRow.batch_id == batch_id, BatchPartRow.number == number)
        with self._engine.connect() as connection:
            return connection.scalar(query) is not None

    def parts(self, batch_id: str) -> list[BatchPart]:
        query = select(BatchPartRow.number, BatchPartRow.object_name, BatchPartRow.lines)
        query = query.where(BatchPartRow.batch_id == batch_id).order_by(BatchPartRow.number)
        with self._engine.connect() as connection:
            return [BatchPart(number, name, array("I", lines)) for number, name, lines in connection.execute(query)]

    def show(self, batch_id: str, fence: int, completed: int, failed: int) -> None:
        """Progress that somebody else counts (an offline job)."""
        with self._engine.begin() as connection:
            _change(connection, batch_id, fence, completed=completed, failed=failed)

    def begin_finalizing(self, batch_id: str, fence: int, now_s: float) -> Batch:
        """No more results come. The first time stays: names of the output files are made from it."""
        with self._engine.begin() as connection:
            _change(connection, batch_id, fence, finalizing_at_s=func.coalesce(BatchRow.finalizing_at_s, now_s))
            running = update(BatchRow).where(*_claimed(batch_id, fence), BatchRow.status == "in_progress")
            connection.execute(running.values(status="finalizing"))
            return _known(connection, batch_id)

    def finish(
        self, batch_id: str, fence: int, status: str, files: Mapping[str, StoredFile], sums: Sums, now_s: float
    ) -> None:
        """The end: `files` by column (`output_file_id`, `error_file_id`) appear with it, the parts' rows go."""
        columns = {column: file.id for column, file in files.items()}
        with self._engine.begin() as connection:
            ending = {"status": status, f"{status}_at_s": now_s, "owner": None}
            _change(connection, batch_id, fence, **ending, **columns, **asdict(sums))
            dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
            for file in files.values():
                connection.execute(dialect.insert(FileRow).values(**asdict(file)).on_conflict_do_nothing())
            connection.execute(delete(BatchPartRow).where(BatchPartRow.batch_id == batch_id))

    def unfinished(self, batch_ids: Iterable[str]) -> set[str]:
        """Those of the batches that still need what lies in their folders."""
        query = select(BatchRow.id).where(BatchRow.id.in_(list(batch_ids)), BatchRow.status.in_(UNFINISHED))
        with self._engine.connect() as connection:
            return set(connection.scalars(query))


_COLUMNS = tuple(getattr(BatchRow, field.name) for field in fields(Batch))


def _claimed(batch_id: str, fence: int) -> tuple[Any, ...]:
    return BatchRow.id == batch_id, BatchRow.fence == fence, BatchRow.status.in_(UNFINISHED)


def _change(connection: Connection, batch_id: str, fence: int, *more: Any, **values: Any) -> None:
    if connection.execute(update(BatchRow).where(*_claimed(batch_id, fence), *more).values(**values)).rowcount != 1:
        raise LostClaimError(batch_id)


def _one(connection: Connection, *where: Any) -> Batch | None:
    row = connection.execute(select(*_COLUMNS).where(*where)).one_or_none()
    return Batch(*row) if row is not None else None


def _known(connection: Connection, batch_id: str) -> Batch:
    batch = _one(connection, BatchRow.id == batch_id)
    assert batch is not None
    return batch

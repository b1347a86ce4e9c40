"""Work that was accepted to be done later. Owns: queries on background requests, and the door to files and batches.

Must not know: HTTP, how requests are run. Every method is one transaction. The rule of who may write is that of
batches (deferred_batches.py): a claim has a fence, and a result that names an older one is dropped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, or_, select, update

from cluster.state.deferred_batches import BatchBook
from cluster.state.deferred_files import FileBook
from cluster.state.deferred_tables import BackgroundRequestRow as Row
from cluster.state.store import Store
from cluster.state.tables import TenantRow
from cluster.state.usage import UsageRecord, append

RUNNABLE = ("queued", "in_progress")
KEEP_S = 24 * 3600.0
"""How long a request that has ended can be read after its deadline."""


class TooManyBackgroundError(Exception):
    """The tenant has as many unfinished background requests as it may have."""


@dataclass(frozen=True, slots=True)
class BackgroundRow:
    """A background request. Status: queued, in_progress, completed, failed, cancelled or incomplete (it expired)."""

    id: str
    tenant: str
    path: str
    body: bytes
    status: str
    http_status: int | None
    response: bytes | None
    created_at_s: float
    finished_at_s: float | None
    key_id: str = ""
    request_class: str = ""
    expires_at_s: float = 0.0
    fence: int = 0


class DeferredStore:
    """Files, batches and background requests of one state store."""

    def __init__(self, store: Store) -> None:
        self._engine = store.engine
        self.files = FileBook(self._engine)
        self.batches = BatchBook(self._engine)

    # --- background requests: the API's side ----------------------------------------------------------------------

    def create_background(
        self, id: str, tenant: str, key_id: str, path: str, body: bytes, request_class: str, created_at_s: float,
        expires_at_s: float, max_unfinished: int | None = None,
    ) -> None:  # fmt: skip
        """Accept a request; the worker runs it as `id`. TooManyBackgroundError."""
        row = {"id": id, "tenant": tenant, "key_id": key_id, "path": path, "body": body}
        times = {"created_at_s": created_at_s, "expires_at_s": expires_at_s, "heartbeat_at_s": 0.0}
        state = {"request_class": str(request_class), "status": "queued", "fence": 0}
        with self._engine.begin() as connection:
            if max_unfinished is not None:
                # Changes nothing; the lock makes two requests at once count each other.
                connection.execute(update(TenantRow).where(TenantRow.name == tenant).values(name=TenantRow.name))
                mine = select(func.count()).select_from(Row).where(Row.tenant == tenant, Row.status.in_(RUNNABLE))
                if (connection.scalar(mine) or 0) >= max_unfinished:
                    raise TooManyBackgroundError
            connection.execute(insert(Row).values(**row, **times, **state))

    def get_background(self, tenant: str, id: str) -> BackgroundRow | None:
        with self._engine.connect() as connection:
            return _one(connection, Row.id == id, Row.tenant == tenant)

    def cancel_background(self, tenant: str, id: str, now_s: float | None = None) -> BackgroundRow | None:
        """End it where it is; the row as it is then. One that has ended stays as it ended."""
        mine = and_(Row.id == id, Row.tenant == tenant)
        ended = {"status": "cancelled", "owner": None, "finished_at_s": _now(now_s)}
        with self._engine.begin() as connection:
            connection.execute(update(Row).where(mine, Row.status.in_(RUNNABLE)).values(**ended))
            return _one(connection, mine)

    def delete_background(self, tenant: str, id: str) -> bool:
        """Forget it; one that runs is stopped. False: there is none."""
        with self._engine.begin() as connection:
            return connection.execute(delete(Row).where(Row.id == id, Row.tenant == tenant)).rowcount == 1

    # --- background requests: the workers' side -------------------------------------------------------------------

    def claim_background(
        self, owner: str, now_s: float, stale_s: float, limit: int, per_tenant: int
    ) -> list[BackgroundRow]:
        """Take requests that nobody works on. Tenants take turns, and none has more than `per_tenant` at work."""
        turn = func.row_number().over(partition_by=Row.tenant, order_by=(Row.created_at_s, Row.id)).label("turn")
        queue = select(Row.id, Row.owner, Row.heartbeat_at_s, turn).where(Row.status.in_(RUNNABLE)).subquery()
        free = or_(queue.c.owner.is_(None), queue.c.heartbeat_at_s < now_s - stale_s)
        wanted = select(queue.c.id).where(free, queue.c.turn <= per_tenant).order_by(queue.c.turn, queue.c.id)
        claimed = []
        with self._engine.connect() as connection:
            ids = list(connection.scalars(wanted.limit(limit)))
        if not ids:
            return []
        values = {"owner": owner, "fence": Row.fence + 1, "heartbeat_at_s": now_s, "status": "in_progress"}
        free_row = or_(Row.owner.is_(None), Row.heartbeat_at_s < now_s - stale_s)
        with self._engine.begin() as connection:
            for id in sorted(ids):  # in one order, so that two workers never wait for each other
                change = update(Row).where(Row.id == id, Row.status.in_(RUNNABLE), free_row)
                if connection.execute(change.values(**values)).rowcount == 1:
                    claimed.append(_one(connection, Row.id == id))
        return [row for row in claimed if row is not None]

    def beat_background(self, owner: str, ids: Iterable[str], now_s: float) -> set[str]:
        """Show that the owner is at work on these; those that are still its."""
        mine = and_(Row.id.in_(list(ids)), Row.owner == owner, Row.status == "in_progress")
        with self._engine.begin() as connection:
            connection.execute(update(Row).where(mine).values(heartbeat_at_s=now_s))
            return set(connection.scalars(select(Row.id).where(mine)))

    def release_background(self, id: str, fence: int) -> None:
        """Give a request back unfinished."""
        with self._engine.begin() as connection:
            connection.execute(update(Row).where(*_claimed(id, fence)).values(owner=None, status="queued"))

    def finish_background(
        self, id: str, fence: int, status: str, http_status: int | None, response: bytes | None,
        records: Iterable[UsageRecord], now_s: float,
    ) -> bool:  # fmt: skip
        """Make a result final and bill it, or neither: False when it was cancelled, deleted or taken over."""
        values = {"status": status, "http_status": http_status, "response": response}
        change = update(Row).where(*_claimed(id, fence)).values(**values, owner=None, finished_at_s=now_s)
        with self._engine.begin() as connection:
            if connection.execute(change).rowcount != 1:
                return False
            append(connection, records)
            return True

    def purge_background(self, now_s: float) -> int:
        """End what nobody began in time, so that its owner can read that; forget what ended long ago. How many went.

        What is at work at its deadline is ended by the worker that has it, or takes it over.
        """
        late = update(Row).where(Row.status == "queued", Row.expires_at_s <= now_s)
        gone = delete(Row).where(Row.status.not_in(RUNNABLE), Row.expires_at_s <= now_s - KEEP_S)
        with self._engine.begin() as connection:
            connection.execute(late.values(status="incomplete", owner=None, finished_at_s=now_s))
            return connection.execute(gone).rowcount


_COLUMNS = tuple(getattr(Row, field.name) for field in fields(BackgroundRow))


def _claimed(id: str, fence: int) -> tuple[Any, ...]:
    return Row.id == id, Row.fence == fence, Row.status == "in_progress"


def _one(connection: Connection, *where: Any) -> BackgroundRow | None:
    row = connection.execute(select(*_COLUMNS).where(*where)).one_or_none()
    return BackgroundRow(*row) if row is not None else None


def _now(now_s: float | None) -> float:
    return time.time() if now_s is None else now_s

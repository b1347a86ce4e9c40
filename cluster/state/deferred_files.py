"""Rows of the Files API. Owns: queries on `files`. Must not know: where the bytes are, HTTP.

Every method is one transaction. A row that must be there for another to be written is changed first: that takes the
write lock (SQLite) or the row's (PostgreSQL), so that nobody changes it in between.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from sqlalchemy import ColumnElement, Engine, func, or_, select, update
from sqlalchemy.orm import Session

from cluster.state.deferred_tables import BatchRow, FileRow
from cluster.state.tables import TenantRow

UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")


class TenantFullError(Exception):
    """The tenant's files would take more than it may have."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as the API shows it, and where its bytes are."""

    id: str
    tenant: str
    purpose: str
    filename: str
    object_name: str
    size_bytes: int
    created_at_s: float
    expires_at_s: float | None = None


class FileBook:
    """All files of all tenants. A file of another tenant is not found, as one that never was."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, file: StoredFile, max_tenant_bytes: int | None = None) -> None:
        """Make a file visible whose object is whole. TenantFullError: it does not fit."""
        with Session(self._engine) as session, session.begin():
            if max_tenant_bytes is not None:
                # Changes nothing; the lock makes two uploads at once count each other.
                session.execute(update(TenantRow).where(TenantRow.name == file.tenant).values(name=TenantRow.name))
                held = select(func.sum(FileRow.size_bytes)).where(
                    FileRow.tenant == file.tenant, FileRow.deleted_at_s.is_(None)
                )
                if (session.scalar(held) or 0) + file.size_bytes > max_tenant_bytes:
                    raise TenantFullError
            session.add(FileRow(**asdict(file)))

    def get(self, tenant: str, file_id: str, now_s: float) -> StoredFile | None:
        with Session(self._engine) as session:
            row = session.scalar(
                select(FileRow).where(FileRow.id == file_id, FileRow.tenant == tenant, *_visible(now_s))
            )
            return stored_file(row) if row else None

    def page(
        self, tenant: str, now_s: float, *, after: str | None, limit: int, newest_first: bool, purpose: str | None
    ) -> list[StoredFile]:
        query = select(FileRow).where(FileRow.tenant == tenant, *_visible(now_s))
        if purpose is not None:
            query = query.where(FileRow.purpose == purpose)
        if after is not None:
            query = query.where(FileRow.id < after if newest_first else FileRow.id > after)
        query = query.order_by(FileRow.id.desc() if newest_first else FileRow.id).limit(limit)
        with Session(self._engine) as session:
            return [stored_file(row) for row in session.scalars(query)]

    def delete(self, tenant: str, file_id: str, now_s: float) -> bool:
        """Make it invisible; `purgeable` names it when nobody needs its bytes any more. False: there is none."""
        change = update(FileRow).where(FileRow.id == file_id, FileRow.tenant == tenant, *_visible(now_s))
        with self._engine.begin() as connection:
            return connection.execute(change.values(deleted_at_s=now_s)).rowcount == 1

    def expire(self, now_s: float) -> None:
        """Delete what has expired. A batch that is being created locks its input's row and wants it not deleted: it is
        there before, and then `purgeable` sees it, or it comes too late. The time alone would order nothing."""
        late = update(FileRow).where(FileRow.expires_at_s <= now_s, FileRow.deleted_at_s.is_(None))
        with self._engine.begin() as connection:
            connection.execute(late.values(deleted_at_s=now_s))

    def purgeable(self, limit: int) -> list[StoredFile]:
        """Deleted files that no unfinished batch reads. No new batch can: see `BatchBook.create`."""
        gone = FileRow.deleted_at_s.is_not(None)
        needed = select(BatchRow.id).where(BatchRow.input_file_id == FileRow.id, BatchRow.status.in_(UNFINISHED))
        with Session(self._engine) as session:
            rows = session.scalars(select(FileRow).where(gone, ~needed.exists()).limit(limit))
            return [stored_file(row) for row in rows]

    def purge(self, file_ids: Iterable[str]) -> None:
        """Forget files whose objects are gone."""
        with Session(self._engine) as session, session.begin():
            for file_id in file_ids:
                row = session.get(FileRow, file_id)
                if row is not None:
                    session.delete(row)

    def known(self, object_names: Iterable[str]) -> set[str]:
        """Those of the objects that a row names."""
        with Session(self._engine) as session:
            return set(session.scalars(select(FileRow.object_name).where(FileRow.object_name.in_(list(object_names)))))


def object_of(file_id: str) -> str:
    """The name of an uploaded file's object; those of other files only their rows know. Offline jobs read batches'
    inputs, and tell by the ending what they hold; nobody reads the ending of other files."""
    return f"{file_id}.jsonl"


def stored_file(row: FileRow) -> StoredFile:
    return StoredFile(*(getattr(row, name) for name in StoredFile.__dataclass_fields__))


def _visible(now_s: float) -> tuple[ColumnElement[bool], ...]:
    return FileRow.deleted_at_s.is_(None), or_(FileRow.expires_at_s.is_(None), FileRow.expires_at_s > now_s)

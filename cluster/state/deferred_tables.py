"""The tables of work that was accepted to be done later. Owns: names, columns, indexes. Must not know: who uses them.

What is large is not here: files, the lines of a batch and their results are objects of the file store (cluster/files).
A batch of 50,000 lines costs the database one row for itself and one for each part of results while it runs.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Float, Index, Integer, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from cluster.state.tables import Base


class FileRow(Base):
    """A file of the Files API. The object is whole in the file store before the row exists.

    Ids begin with the time of creation, so their order is the order of lists, whether a row of that id is left or not.
    """

    __tablename__ = "files"
    __table_args__ = (
        Index("files_by_tenant", "tenant", "id"),
        Index("files_by_expiry", "expires_at_s"),
        Index("files_by_deletion", "deleted_at_s"),
        Index("files_by_object", "object_name"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    purpose: Mapped[str] = mapped_column(String(32))
    filename: Mapped[str] = mapped_column(Text)
    object_name: Mapped[str] = mapped_column(String(255))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at_s: Mapped[float] = mapped_column(Float)
    expires_at_s: Mapped[float | None] = mapped_column(Float)
    deleted_at_s: Mapped[float | None] = mapped_column(Float)
    """Invisible from here on; the object goes when no unfinished batch reads it."""


class BatchRow(Base):
    """A batch of the Batch API, and which worker has it.

    `fence` grows whenever a worker takes the batch: what an earlier owner still wants to write names an older number.
    """

    __tablename__ = "batches"
    __table_args__ = (
        Index("batches_by_tenant", "tenant", "id"),
        Index("batches_by_status", "status", "heartbeat_at_s"),
        Index("batches_by_input", "input_file_id"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str] = mapped_column(String(32))
    endpoint: Mapped[str] = mapped_column(String(64))
    input_file_id: Mapped[str] = mapped_column(String(64))
    completion_window: Mapped[str] = mapped_column(String(16))
    extra: Mapped[dict[str, str] | None] = mapped_column("metadata", JSON)
    output_expires_after_s: Mapped[int | None] = mapped_column(Integer)
    status: Mapped[str] = mapped_column(String(16))
    model: Mapped[str | None] = mapped_column(String(255))
    mode: Mapped[str | None] = mapped_column(String(8))
    """Chosen once: `queue` (line by line) or `job` (an offline job)."""
    problems: Mapped[list[dict[str, object]] | None] = mapped_column(JSON)
    total: Mapped[int] = mapped_column(Integer, default=0)
    completed: Mapped[int] = mapped_column(Integer, default=0)
    failed: Mapped[int] = mapped_column(Integer, default=0)
    input_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    cached_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    output_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    output_file_id: Mapped[str | None] = mapped_column(String(64))
    error_file_id: Mapped[str | None] = mapped_column(String(64))
    created_at_s: Mapped[float] = mapped_column(Float)
    expires_at_s: Mapped[float] = mapped_column(Float)
    in_progress_at_s: Mapped[float | None] = mapped_column(Float)
    finalizing_at_s: Mapped[float | None] = mapped_column(Float)
    completed_at_s: Mapped[float | None] = mapped_column(Float)
    failed_at_s: Mapped[float | None] = mapped_column(Float)
    expired_at_s: Mapped[float | None] = mapped_column(Float)
    cancelling_at_s: Mapped[float | None] = mapped_column(Float)
    cancelled_at_s: Mapped[float | None] = mapped_column(Float)
    owner: Mapped[str | None] = mapped_column(String(64))
    fence: Mapped[int] = mapped_column(Integer, default=0)
    heartbeat_at_s: Mapped[float] = mapped_column(Float, default=0.0)


class BatchPartRow(Base):
    """Results that are final: an object of the file store, and which lines of the input it answers.

    `lines` holds one unsigned 32-bit integer for each line of the object: 2 x line number + 1 if it is an error.
    """

    __tablename__ = "batch_parts"

    batch_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    object_name: Mapped[str] = mapped_column(String(255))
    lines: Mapped[bytes] = mapped_column(LargeBinary)


class BackgroundRequestRow(Base):
    """One request that runs without a client. Request and response are here: they are single, and looked up by id.

    They are the last columns: SQLite reads a row from its front, and looking for work must not walk through them.
    """

    __tablename__ = "background_requests"
    __table_args__ = (
        Index("background_by_status", "status", "heartbeat_at_s"),
        Index("background_by_tenant", "tenant", "status"),
        Index("background_by_expiry", "expires_at_s"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str] = mapped_column(String(32))
    path: Mapped[str] = mapped_column(String(64))
    request_class: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    http_status: Mapped[int | None] = mapped_column(Integer)
    created_at_s: Mapped[float] = mapped_column(Float)
    finished_at_s: Mapped[float | None] = mapped_column(Float)
    expires_at_s: Mapped[float] = mapped_column(Float)
    owner: Mapped[str | None] = mapped_column(String(64))
    fence: Mapped[int] = mapped_column(Integer, default=0)
    heartbeat_at_s: Mapped[float] = mapped_column(Float, default=0.0)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    response: Mapped[bytes | None] = mapped_column(LargeBinary)

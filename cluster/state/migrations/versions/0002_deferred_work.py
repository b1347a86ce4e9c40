"""Files, batches, parts of their results, and background requests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    _files()
    _batches()
    op.create_table(
        "batch_parts",
        sa.Column("batch_id", sa.String(64), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("object_name", sa.String(255), nullable=False),
        sa.Column("lines", sa.LargeBinary, nullable=False),
    )
    _background_requests()


def _files() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("object_name", sa.String(255), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at_s", sa.Float, nullable=False),
        sa.Column("expires_at_s", sa.Float),
        sa.Column("deleted_at_s", sa.Float),
    )
    op.create_index("files_by_tenant", "files", ["tenant", "id"])
    op.create_index("files_by_expiry", "files", ["expires_at_s"])
    op.create_index("files_by_deletion", "files", ["deleted_at_s"])
    op.create_index("files_by_object", "files", ["object_name"])


def _batches() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("input_file_id", sa.String(64), nullable=False),
        sa.Column("completion_window", sa.String(16), nullable=False),
        sa.Column("metadata", sa.JSON),
        sa.Column("output_expires_after_s", sa.Integer),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("model", sa.String(255)),
        sa.Column("mode", sa.String(8)),
        sa.Column("problems", sa.JSON),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("completed", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_file_id", sa.String(64)),
        sa.Column("error_file_id", sa.String(64)),
        sa.Column("created_at_s", sa.Float, nullable=False),
        sa.Column("expires_at_s", sa.Float, nullable=False),
        sa.Column("in_progress_at_s", sa.Float),
        sa.Column("finalizing_at_s", sa.Float),
        sa.Column("completed_at_s", sa.Float),
        sa.Column("failed_at_s", sa.Float),
        sa.Column("expired_at_s", sa.Float),
        sa.Column("cancelling_at_s", sa.Float),
        sa.Column("cancelled_at_s", sa.Float),
        sa.Column("owner", sa.String(64)),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("heartbeat_at_s", sa.Float, nullable=False),
    )
    op.create_index("batches_by_tenant", "batches", ["tenant", "id"])
    op.create_index("batches_by_status", "batches", ["status", "heartbeat_at_s"])
    op.create_index("batches_by_input", "batches", ["input_file_id"])


def _background_requests() -> None:
    op.create_table(
        "background_requests",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("path", sa.String(64), nullable=False),
        sa.Column("request_class", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("http_status", sa.Integer),
        sa.Column("created_at_s", sa.Float, nullable=False),
        sa.Column("finished_at_s", sa.Float),
        sa.Column("expires_at_s", sa.Float, nullable=False),
        sa.Column("owner", sa.String(64)),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("heartbeat_at_s", sa.Float, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("response", sa.LargeBinary),
    )
    op.create_index("background_by_status", "background_requests", ["status", "heartbeat_at_s"])
    op.create_index("background_by_tenant", "background_requests", ["tenant", "status"])
    op.create_index("background_by_expiry", "background_requests", ["expires_at_s"])

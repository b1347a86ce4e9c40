"""The tables as they were before there were versions. Stores made then have them, so what exists is left alone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0000"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "tenants",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("policy", sa.JSON, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("key_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("tenant", sa.String(64), sa.ForeignKey("tenants.name"), nullable=False),
        sa.Column("created_at_s", sa.Float, nullable=False),
        sa.Column("revoked", sa.Boolean, nullable=False),
        if_not_exists=True,
    )
    op.create_index("ix_api_keys_tenant", "api_keys", ["tenant"], if_not_exists=True)
    op.create_table(
        "usage",
        sa.Column("request_id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("deployment", sa.String(255), nullable=False),
        sa.Column("request_class", sa.String(16), nullable=False),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("cached_tokens", sa.Integer, nullable=False),
        sa.Column("output_tokens", sa.Integer, nullable=False),
        sa.Column("queue_wait_s", sa.Float, nullable=False),
        sa.Column("ttft_s", sa.Float),
        sa.Column("duration_s", sa.Float, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("finished_at_s", sa.Float, nullable=False),
        if_not_exists=True,
    )
    op.create_index("usage_by_time", "usage", ["finished_at_s"], if_not_exists=True)
    op.create_index("usage_by_tenant", "usage", ["tenant", "finished_at_s"], if_not_exists=True)
    op.create_table(
        "replica_spans",
        sa.Column("replica_id", sa.String(255), primary_key=True),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("deployment", sa.String(255), nullable=False),
        sa.Column("usd_per_hour", sa.Float, nullable=False),
        sa.Column("started_at_s", sa.Float, nullable=False),
        sa.Column("last_seen_at_s", sa.Float, nullable=False),
        if_not_exists=True,
    )
    op.create_index("ix_replica_spans_deployment", "replica_spans", ["deployment"], if_not_exists=True)

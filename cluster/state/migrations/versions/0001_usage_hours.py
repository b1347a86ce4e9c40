"""Sums of usage per hour, filled from what is there; records of several requests; replica lives by their end."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = "0000"

COLUMNS = "hour_s, tenant, key_id, model, deployment, request_class"


def upgrade() -> None:
    op.create_table(
        "usage_hours",
        sa.Column("hour_s", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("model", sa.String(255), primary_key=True),
        sa.Column("deployment", sa.String(255), primary_key=True),
        sa.Column("request_class", sa.String(16), primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
    )
    op.create_index("usage_hours_by_tenant", "usage_hours", ["tenant", "hour_s"])
    op.create_index("replica_spans_by_last_seen", "replica_spans", ["last_seen_at_s"])
    op.add_column("usage", sa.Column("requests", sa.Integer, nullable=False, server_default="1"))
    # PostgreSQL's cast rounds, SQLite's cuts and its `floor` is not compiled in everywhere.
    seconds = "finished_at_s" if op.get_bind().dialect.name == "sqlite" else "floor(finished_at_s)"
    op.execute(f"""
        INSERT INTO usage_hours ({COLUMNS}, requests, prompt_tokens, cached_tokens, output_tokens)
        SELECT CAST({seconds} AS BIGINT) / 3600 * 3600, tenant, key_id, model, deployment, request_class,
               count(*), sum(prompt_tokens), sum(cached_tokens), sum(output_tokens)
        FROM usage GROUP BY 1, 2, 3, 4, 5, 6
    """)

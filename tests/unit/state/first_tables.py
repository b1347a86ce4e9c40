"""The tables as the store made them before they had versions: what existing stores look like."""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData()
TENANTS = sa.Table(
    "tenants",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("policy", sa.JSON, nullable=False),
)
API_KEYS = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("key_hash", sa.String(64), unique=True, nullable=False),
    sa.Column("tenant", sa.ForeignKey("tenants.name"), index=True, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
    sa.Column("revoked", sa.Boolean, nullable=False),
)
USAGE = sa.Table(
    "usage",
    METADATA,
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
    sa.Index("usage_by_time", "finished_at_s"),
    sa.Index("usage_by_tenant", "tenant", "finished_at_s"),
)
SPANS = sa.Table(
    "replica_spans",
    METADATA,
    sa.Column("replica_id", sa.String(255), primary_key=True),
    sa.Column("model", sa.String(255), nullable=False),
    sa.Column("deployment", sa.String(255), index=True, nullable=False),
    sa.Column("usd_per_hour", sa.Float, nullable=False),
    sa.Column("started_at_s", sa.Float, nullable=False),
    sa.Column("last_seen_at_s", sa.Float, nullable=False),
)

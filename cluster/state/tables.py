"""The tables. Owns: names, columns, indexes. Must not know: who reads or writes them."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Float, ForeignKey, Index, Integer, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """All tables of the state store."""


class TenantRow(Base):
    """A billing unit. `policy` holds weight, limits and default tier as the configuration writes them."""

    __tablename__ = "tenants"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    policy: Mapped[dict[str, object]] = mapped_column(JSON, default=dict)


class ApiKeyRow(Base):
    """An API key: only its SHA-256 is kept. Keys are 256 random bits, so a slow hash would add nothing."""

    __tablename__ = "api_keys"

    key_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"), index=True)
    created_at_s: Mapped[float] = mapped_column(Float)
    revoked: Mapped[bool] = mapped_column(Boolean, default=False)


class UsageRow(Base):
    """One finished request, or many of an offline job. Append-only; `request_id` makes a repeated write harmless."""

    __tablename__ = "usage"
    __table_args__ = (Index("usage_by_time", "finished_at_s"), Index("usage_by_tenant", "tenant", "finished_at_s"))

    request_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str] = mapped_column(String(32))
    model: Mapped[str] = mapped_column(String(255))
    deployment: Mapped[str] = mapped_column(String(255))
    request_class: Mapped[str] = mapped_column(String(16))
    prompt_tokens: Mapped[int] = mapped_column(Integer)
    cached_tokens: Mapped[int] = mapped_column(Integer)
    output_tokens: Mapped[int] = mapped_column(Integer)
    queue_wait_s: Mapped[float] = mapped_column(Float)
    ttft_s: Mapped[float | None] = mapped_column(Float)
    duration_s: Mapped[float] = mapped_column(Float)
    status: Mapped[int] = mapped_column(Integer)
    finished_at_s: Mapped[float] = mapped_column(Float)
    requests: Mapped[int] = mapped_column(Integer, default=1, server_default="1")
    """More than one in the record of a part of an offline job."""
    upstream_usd: Mapped[float] = mapped_column(Float, default=0.0, server_default="0")
    """Paid to an upstream, by its price list. What replicas cost is split from their lives instead."""


class UsageHourRow(Base):
    """Sums of `usage` over one hour. Written with the rows that they sum, so that both always agree."""

    __tablename__ = "usage_hours"
    __table_args__ = (Index("usage_hours_by_tenant", "tenant", "hour_s"),)

    hour_s: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    """When the hour began."""
    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    model: Mapped[str] = mapped_column(String(255), primary_key=True)
    deployment: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_class: Mapped[str] = mapped_column(String(16), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    upstream_usd: Mapped[float] = mapped_column(Float, default=0.0, server_default="0")


class ReplicaSpanRow(Base):
    """The life of one replica: what it cost is (last_seen - started) x price, whoever used it."""

    __tablename__ = "replica_spans"
    __table_args__ = (Index("replica_spans_by_last_seen", "last_seen_at_s"),)

    replica_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    model: Mapped[str] = mapped_column(String(255))
    deployment: Mapped[str] = mapped_column(String(255), index=True)
    usd_per_hour: Mapped[float] = mapped_column(Float)
    started_at_s: Mapped[float] = mapped_column(Float)
    last_seen_at_s: Mapped[float] = mapped_column(Float)

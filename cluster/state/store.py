"""The state store. Owns: sessions and queries. Must not know: Ray, HTTP, scheduling.

SQLite runs in WAL mode with a busy timeout, so that several processes of one machine share it; a cluster of several
nodes takes PostgreSQL by URL. Every method is one transaction.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from cluster.state.keys import KeyInfo, KeyNotFoundError, hash_key, new_key
from cluster.state.tables import ApiKeyRow, Base, ReplicaSpanRow, TenantRow, UsageRow

BUSY_TIMEOUT_S = 30


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


class Store:
    """Tenants, keys, usage and replica lifetimes behind one SQLAlchemy URL."""

    def __init__(self, url: str) -> None:
        self._engine = _make_engine(url)

    def create(self) -> None:
        """Create what is missing; harmless when all is there."""
        Base.metadata.create_all(self._engine)

    def close(self) -> None:
        self._engine.dispose()

    # --- tenants --------------------------------------------------------------------------------------------------

    def put_tenant(self, name: str, policy: Mapping[str, Any]) -> None:
        """Create the tenant or replace its policy."""
        with Session(self._engine) as session, session.begin():
            session.merge(TenantRow(name=name, policy=dict(policy)))

    def add_tenants(self, policies: Mapping[str, Mapping[str, Any]]) -> None:
        """Create the tenants that do not exist; those that do are left as they are."""
        with Session(self._engine) as session, session.begin():
            known = set(session.scalars(select(TenantRow.name)))
            session.add_all(TenantRow(name=n, policy=dict(p)) for n, p in policies.items() if n not in known)

    def tenants(self) -> dict[str, dict[str, Any]]:
        with Session(self._engine) as session:
            return {row.name: dict(row.policy) for row in session.scalars(select(TenantRow))}

    # --- keys -----------------------------------------------------------------------------------------------------

    def create_key(self, tenant: str) -> tuple[str, str]:
        """(key id, secret). The tenant is created with the default policy when it is new."""
        key_id, secret = new_key()
        self.add_tenants({tenant: {}})
        self._insert_key(key_id, secret, tenant)
        return key_id, secret

    def ensure_key(self, secret: str, tenant: str) -> None:
        """Make a key known that was created before (the local default key)."""
        self.add_tenants({tenant: {}})
        with Session(self._engine) as session:
            known = session.scalar(select(ApiKeyRow.key_id).where(ApiKeyRow.key_hash == hash_key(secret)))
        if known is None:
            self._insert_key(new_key()[0], secret, tenant)

    def find_key(self, key_hash: str) -> KeyInfo | None:
        """The live key with this hash; None when unknown or revoked."""
        with Session(self._engine) as session:
            row = session.scalar(select(ApiKeyRow).where(ApiKeyRow.key_hash == key_hash, ~ApiKeyRow.revoked))
            return _key_info(row) if row else None

    def keys(self, tenant: str | None = None) -> list[KeyInfo]:
        query = select(ApiKeyRow).order_by(ApiKeyRow.created_at_s)
        if tenant is not None:
            query = query.where(ApiKeyRow.tenant == tenant)
        with Session(self._engine) as session:
            return [_key_info(row) for row in session.scalars(query)]

    def revoke_key(self, key_id: str) -> None:
        with Session(self._engine) as session, session.begin():
            row = session.get(ApiKeyRow, key_id)
            if row is None:
                raise KeyNotFoundError(f"no key {key_id!r}; `tribes keys list` shows the ids")
            row.revoked = True

    # --- usage ----------------------------------------------------------------------------------------------------

    def add_usage(self, records: Iterable[UsageRecord]) -> None:
        """Append finished requests; one that is there already is left alone."""
        rows = [asdict(record) for record in records]
        if rows:
            insert = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
            with self._engine.begin() as connection:
                connection.execute(insert(UsageRow).on_conflict_do_nothing(), rows)

    def usage(self, since_s: float = 0.0) -> list[UsageRecord]:
        """Finished requests since a point in time, oldest first."""
        columns = [getattr(UsageRow, name) for name in UsageRecord.__dataclass_fields__]
        query = select(*columns).where(UsageRow.finished_at_s >= since_s).order_by(UsageRow.finished_at_s)
        with Session(self._engine) as session:
            return [UsageRecord(*row) for row in session.execute(query)]

    def usage_totals(self, since_s: float = 0.0) -> list[dict[str, Any]]:
        """Sums per tenant, model, deployment and class."""
        keys = (UsageRow.tenant, UsageRow.model, UsageRow.deployment, UsageRow.request_class)
        sums = [
            func.sum(c).label(c.key) for c in (UsageRow.prompt_tokens, UsageRow.cached_tokens, UsageRow.output_tokens)
        ]
        query = select(*keys, func.count().label("requests"), *sums).where(UsageRow.finished_at_s >= since_s)
        with Session(self._engine) as session:
            return [dict(row._mapping) for row in session.execute(query.group_by(*keys))]

    # --- replicas -------------------------------------------------------------------------------------------------

    def touch_replica(
        self, replica_id: str, model: str, deployment: str, usd_per_hour: float, started_at_s: float, seen_at_s: float
    ) -> None:
        """Note that a replica lives; its cost runs from its start to the last touch."""
        row = ReplicaSpanRow(
            replica_id=replica_id,
            model=model,
            deployment=deployment,
            usd_per_hour=usd_per_hour,
            started_at_s=started_at_s,
            last_seen_at_s=seen_at_s,
        )
        with Session(self._engine) as session, session.begin():
            session.merge(row)

    def replica_seconds(self, since_s: float = 0.0) -> list[dict[str, Any]]:
        """Seconds and dollars per deployment since a point in time."""
        query = select(ReplicaSpanRow).where(ReplicaSpanRow.last_seen_at_s >= since_s)
        totals: dict[str, dict[str, Any]] = {}
        with Session(self._engine) as session:
            for row in session.scalars(query):
                seconds = row.last_seen_at_s - max(row.started_at_s, since_s)
                total = totals.setdefault(
                    row.deployment, {"deployment": row.deployment, "model": row.model, "seconds": 0.0, "usd": 0.0}
                )
                total["seconds"] += seconds
                total["usd"] += seconds / 3600 * row.usd_per_hour
        return list(totals.values())

    def _insert_key(self, key_id: str, secret: str, tenant: str) -> None:
        row = ApiKeyRow(
            key_id=key_id, key_hash=hash_key(secret), tenant=tenant, created_at_s=time.time(), revoked=False
        )
        with Session(self._engine) as session, session.begin():
            session.add(row)


def _make_engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def _tune(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        # Survives the death of processes; only a power cut may lose the last commits.
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine


def _key_info(row: ApiKeyRow) -> KeyInfo:
    return KeyInfo(row.key_id, row.tenant, row.created_at_s, row.revoked)

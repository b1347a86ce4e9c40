"""The state store. Owns: transactions, and the queries on tenants and keys. Must not know: Ray, HTTP.

Every method is one transaction.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from cluster.scheduling.service import ServiceWeights
from cluster.state import bill, schema, spans, usage
from cluster.state.bill import Grouping, Spent, UsageLine
from cluster.state.engine import make_engine
from cluster.state.keys import KeyInfo, KeyNotFoundError, hash_key, new_key
from cluster.state.tables import ApiKeyRow, ReplicaSpanRow, TenantRow
from cluster.state.usage import Period, UsageRecord


class Store:
    """Tenants, keys, usage and replica lifetimes behind one SQLAlchemy URL."""

    def __init__(self, url: str) -> None:
        self._engine = make_engine(url)

    @property
    def engine(self) -> Engine:
        """For the parts of the store that have modules of their own."""
        return self._engine

    def create(self) -> None:
        """Create or migrate the tables; harmless when all is there. Raises StoreVersionError for a newer store."""
        schema.bring_up(self._engine)

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

    def tenant_policy(self, name: str) -> dict[str, Any]:
        """The policy of one tenant; empty for one that does not exist."""
        with Session(self._engine) as session:
            row = session.get(TenantRow, name)
            return dict(row.policy) if row else {}

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
        with self._engine.begin() as connection:
            usage.append(connection, records)

    def usage(self, since_s: float = 0.0) -> list[UsageRecord]:
        """Finished requests since a point in time, oldest first."""
        with self._engine.connect() as connection:
            return usage.records(connection, since_s)

    def usage_totals(self, since_s: float = 0.0, until_s: float | None = None) -> list[dict[str, Any]]:
        """Sums per tenant, model, deployment and class."""
        return self.usage_sums(Period(since_s, until_s), ("tenant", "model", "deployment", "request_class"))

    def usage_sums(self, period: Period, by: Sequence[str], tenant: str | None = None) -> list[dict[str, Any]]:
        """Requests and tokens per group of a period; `by` as in `usage.sums`."""
        with self._engine.connect() as connection:
            return usage.sums(connection, period, by, tenant)

    def usage_lines(
        self, period: Period, weights: ServiceWeights, tenant: str | None = None, by: Grouping | None = None
    ) -> list[UsageLine]:
        """What tenants, or their keys, models, classes or days, used and cost."""
        with self._engine.connect() as connection:
            return bill.usage_lines(connection, period, weights, tenant, by)

    def spent_today(self, now_s: float, weights: ServiceWeights | None = None) -> dict[str, Spent]:
        """Tokens and dollars since midnight UTC, per tenant that used anything. Cheap: it reads sums, not requests.

        `weights` are the configuration's (`scheduling.input_weight` and `output_weight`), by which costs are split.
        """
        with self._engine.connect() as connection:
            return bill.spent_today(connection, now_s, weights or ServiceWeights())

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

    def replica_seconds(self, since_s: float = 0.0, until_s: float | None = None) -> list[dict[str, Any]]:
        """Seconds and dollars per deployment in a period."""
        with self._engine.connect() as connection:
            return spans.replica_seconds(connection, Period(since_s, until_s))

    def _insert_key(self, key_id: str, secret: str, tenant: str) -> None:
        row = ApiKeyRow(
            key_id=key_id, key_hash=hash_key(secret), tenant=tenant, created_at_s=time.time(), revoked=False
        )
        with Session(self._engine) as session, session.begin():
            session.add(row)


def _key_info(row: ApiKeyRow) -> KeyInfo:
    return KeyInfo(row.key_id, row.tenant, row.created_at_s, row.revoked)

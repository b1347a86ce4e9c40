"""The state store on SQLite and, where it is installed, PostgreSQL: keys hashed, usage exact, writers side by side."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from cluster.scheduling import ServiceWeights
from cluster.state import KeyNotFoundError, Store, hash_key, tenant_costs
from tests.unit.state.records import record


def test_a_key_is_found_until_revoked_and_never_stored(store: Store, tmp_path: Path) -> None:
    key_id, secret = store.create_key("team-a")
    found = store.find_key(hash_key(secret))
    assert found is not None and (found.tenant, found.key_id) == ("team-a", key_id)
    if (tmp_path / "sub").exists():
        raw = b"".join(p.read_bytes() for p in (tmp_path / "sub").iterdir())
        assert secret.encode() not in raw and hash_key(secret).encode() in raw
    store.revoke_key(key_id)
    assert store.find_key(hash_key(secret)) is None
    assert [k.revoked for k in store.keys("team-a")] == [True]
    with pytest.raises(KeyNotFoundError, match="keys list"):
        store.revoke_key("nope")


def test_default_key_is_added_once(store: Store) -> None:
    store.ensure_key("sk-tribes-fixed", "default")
    store.ensure_key("sk-tribes-fixed", "default")
    assert len(store.keys()) == 1


def test_configured_tenants_do_not_overwrite_changed_ones(store: Store) -> None:
    store.add_tenants({"a": {"weight": 1}})
    store.put_tenant("a", {"weight": 5})
    store.add_tenants({"a": {"weight": 1}, "b": {}})
    assert store.tenants() == {"a": {"weight": 5}, "b": {}}


def test_the_policy_of_one_tenant(store: Store) -> None:
    store.add_tenants({"a": {"weight": 2}, "b": {}})
    assert store.tenant_policy("a") == {"weight": 2} and store.tenant_policy("b") == store.tenant_policy("c") == {}


def test_errors_of_the_database_tell_no_parameters(store: Store) -> None:
    """Bodies of requests are parameters, and errors are logged."""
    with pytest.raises(SQLAlchemyError) as caught, store.engine.begin() as connection:
        connection.execute(text("SELECT * FROM no_such_table WHERE body = :body"), {"body": "my secret prompt"})
    assert "no_such_table" in str(caught.value) and "secret" not in str(caught.value)


def test_usage_is_written_once_and_summed_exactly(store: Store) -> None:
    store.add_usage([record(1), record(2), record(3, tenant="b", output_tokens=100)])
    store.add_usage([record(2)])
    totals = {row["tenant"]: row for row in store.usage_totals()}
    assert totals["a"]["requests"] == 2 and totals["a"]["output_tokens"] == 14 and totals["a"]["cached_tokens"] == 8
    assert totals["b"]["output_tokens"] == 100
    assert [r.request_id for r in store.usage(since_s=1002.0)] == ["r2", "r3"]
    assert store.usage()[0] == record(1)


def test_writers_of_several_connections_do_not_lose_rows(store: Store, url: str) -> None:
    stores = [Store(url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: stores[n % 4].add_usage([record(n)]), range(200)))
    assert len(store.usage()) == 200
    for other in stores:
        other.close()


def test_sqlite_runs_in_wal_mode(tmp_path: Path) -> None:
    Store(f"sqlite:///{tmp_path}/state.db").create()
    with sqlite3.connect(tmp_path / "state.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_cost_is_split_by_service_and_adds_up(store: Store) -> None:
    store.touch_replica("r0", "m", "d", 3.6, 0.0, 500.0)
    store.touch_replica("r0", "m", "d", 3.6, 0.0, 1000.0)
    store.touch_replica("r1", "m", "unused", 3.6, 900.0, 1000.0)
    # 6 uncached + 2 x 7 = 20 service for a, 6 + 2 x 27 = 60 for b
    store.add_usage([record(1), record(2, tenant="b", output_tokens=27)])
    costs = {
        (c.tenant, c.deployment): c
        for c in tenant_costs(store.usage_totals(), store.replica_seconds(), ServiceWeights())
    }
    assert costs["a", "d"].usd == pytest.approx(0.25)
    assert costs["b", "d"].usd == pytest.approx(0.75)
    assert costs["(idle)", "unused"].usd == pytest.approx(0.1)
    assert costs["a", "d"].usd_per_mtok == pytest.approx(0.25 / 17 * 1e6)

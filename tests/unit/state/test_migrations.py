"""Tables of every age become today's, without loss, whoever else is doing it; models and migrations say the same."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, insert, inspect, text

from cluster.state import Store, StoreVersionError
from cluster.state.engine import make_engine
from cluster.state.migrations.run import make_config, upgrade
from cluster.state.schema import versions
from cluster.state.tables import Base
from tests.unit.state import first_tables
from tests.unit.state.records import record

PROCESSES = 4
CREATE = """
import sys, time
from pathlib import Path
from cluster.state import Store
store, gate = Store(sys.argv[1]), Path(sys.argv[2])
Path(sys.argv[3]).touch()
deadline = time.monotonic() + 60
while not gate.exists():
    assert time.monotonic() < deadline
    time.sleep(0.001)
store.create()
store.create_key("from-" + sys.argv[3].rpartition("/")[2])
"""


@pytest.fixture
def engine(url: str) -> Engine:
    return make_engine(url)


def differences(engine: Engine) -> list[object]:
    """What Alembic would change to make the tables the models'."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return list(compare_metadata(context, Base.metadata))


def make_first_store(engine: Engine) -> None:
    """As it was left by the code before versions: a tenant, a key, a replica and three requests in two hours."""
    first_tables.METADATA.create_all(engine)
    rows = [record(0, finished_at_s=3599.9999999999995), record(1, finished_at_s=3600.0), record(2, tenant="b")]
    with engine.begin() as connection:
        connection.execute(insert(first_tables.TENANTS).values(name="a", policy={"weight": 3}))
        connection.execute(
            insert(first_tables.API_KEYS).values(key_id="k", key_hash="h", tenant="a", created_at_s=1.0, revoked=False)
        )
        connection.execute(
            insert(first_tables.SPANS).values(
                replica_id="r", model="m", deployment="d", usd_per_hour=3.6, started_at_s=0.0, last_seen_at_s=1000.0
            )
        )
        connection.execute(insert(first_tables.USAGE), [asdict(row) for row in rows])


def test_migrated_tables_are_the_models(engine: Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection)
    assert differences(engine) == []


def test_new_tables_are_the_models_and_marked_as_newest(url: str, engine: Engine) -> None:
    Store(url).create()
    assert differences(engine) == []
    with engine.connect() as connection:
        script = ScriptDirectory.from_config(make_config(connection))
        assert MigrationContext.configure(connection).get_current_revision() == script.get_current_head()
    assert [step.revision for step in script.walk_revisions()] == versions()[::-1]


def test_alembic_is_loaded_only_where_tables_change(url: str) -> None:
    """It takes half a second to import."""
    script = (
        "import sys; from cluster.state import Store; "
        "[Store(sys.argv[1]).create() for _ in range(2)]; sys.exit('alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script, url], timeout=60).returncode == 0


def test_a_difference_would_be_seen(engine: Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection)
        connection.execute(text("DROP INDEX usage_by_time"))
        connection.execute(text("ALTER TABLE usage ADD COLUMN more INTEGER"))
    assert len(differences(engine)) == 2


def test_a_store_from_before_versions_is_taken_over_whole(url: str, engine: Engine) -> None:
    make_first_store(engine)
    store = Store(url)
    store.create()
    assert differences(engine) == []
    assert store.tenants() == {"a": {"weight": 3}}
    assert [key.key_id for key in store.keys("a")] == ["k"]
    assert [row.request_id for row in store.usage()] == ["r2", "r0", "r1"]
    assert store.replica_seconds()[0]["usd"] == pytest.approx(1.0)
    store.add_usage([record(0), record(3, finished_at_s=3601.0)])
    assert {row["tenant"]: row["output_tokens"] for row in store.usage_totals()} == {"a": 21, "b": 7}
    assert {row["tenant"]: row["output_tokens"] for row in store.usage_totals(3600.0)} == {"a": 14}
    store.close()


def test_sums_of_stores_without_upstreams_are_kept(url: str, engine: Engine) -> None:
    """As version 0002 left it: nothing in it was paid upstream."""
    make_first_store(engine)
    with engine.begin() as connection:
        upgrade(connection, "0002")
    store = Store(url)
    store.create()
    assert differences(engine) == []
    assert [row.upstream_usd for row in store.usage()] == [0.0, 0.0, 0.0]
    store.add_usage([record(3, finished_at_s=3601.0, upstream_usd=0.5)])
    assert {row["tenant"]: row["upstream_usd"] for row in store.usage_totals()} == {"a": 0.5, "b": 0.0}
    store.close()


def test_half_of_a_first_store_is_completed(url: str, engine: Engine) -> None:
    first_tables.TENANTS.create(engine)
    Store(url).create()
    assert differences(engine) == []


def test_a_newer_store_is_refused_with_the_cure(url: str, engine: Engine) -> None:
    store = Store(url)
    store.create()
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreVersionError, match=r"9999.*state\.url"):
        store.create()
    store.close()


def test_a_step_that_fails_leaves_everything_as_it_was(url: str, engine: Engine) -> None:
    make_first_store(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE usage_hours (in_the_way INTEGER)"))
    with pytest.raises(Exception, match="usage_hours"):
        Store(url).create()
    assert "alembic_version" not in inspect(create_engine(url)).get_table_names()
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE usage_hours"))
    Store(url).create()
    assert differences(engine) == []


@pytest.mark.parametrize("existing", [False, True], ids=["new", "first"])
def test_processes_that_start_together_make_one_store(url: str, engine: Engine, existing: bool, tmp_path: Path) -> None:
    if existing:
        make_first_store(engine)
    gate, names = tmp_path / "gate", [f"p{number}" for number in range(PROCESSES)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, url, str(gate), str(tmp_path / name)], stderr=subprocess.PIPE, text=True
        )
        for name in names
    ]
    try:
        deadline = time.monotonic() + 60
        while not all((tmp_path / name).exists() for name in names):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        gate.touch()
        ended = [(process.communicate(timeout=60)[1], process.returncode) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [code for _, code in ended] == [0] * PROCESSES, ended
    assert differences(engine) == []
    store = Store(url)
    assert set(store.tenants()) >= {f"from-{name}" for name in names}
    store.close()

"""The store on each database: a file of SQLite, and an emptied PostgreSQL where that is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from cluster.state import Store
from tests.support.postgres import postgres_url, server_program


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    if server_program("initdb") is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with postgres_url() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/sub/state.db"
    found: str = request.getfixturevalue("postgres")
    engine = create_engine(found)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()
    return found


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store(url)
    store.create()
    yield store
    store.close()

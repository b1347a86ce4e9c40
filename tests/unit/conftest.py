"""One PostgreSQL server for all unit tests of a process, where it is installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.postgres import postgres_url, server_program


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    if server_program("initdb") is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with postgres_url() as url:
        yield url

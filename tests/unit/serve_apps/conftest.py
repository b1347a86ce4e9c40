"""Fixtures of the request path's tests: two scripted engines for the session, and a house around them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.support.postgres import emptied
from tests.unit.serve_apps.harness import House, configuration
from tests.unit.serve_apps.overflow import KEY
from tests.unit.serve_apps.servers import Engine, scripted_engine


class MakeHouse(Protocol):
    """`await make_house(replicas=2, max_running=1, gateway={...})`: a running house; it goes with the test."""

    async def __call__(self, *, replicas: int = 1, **sections: Any) -> House: ...


@pytest.fixture(scope="session")
def engines() -> Iterator[list[Engine]]:
    with scripted_engine("--max-model-len", "4000") as a, scripted_engine("--max-model-len", "4000") as b:
        yield [a, b]


@pytest.fixture
async def make_house(tmp_path: Path, engines: list[Engine]) -> AsyncIterator[MakeHouse]:
    async with contextlib.AsyncExitStack() as stack:

        async def make(*, replicas: int = 1, max_running: int | None = None, **sections: Any) -> House:
            if max_running is not None:
                sections["deployment"] = {"max_running": max_running, **sections.get("deployment", {})}
            house = await stack.enter_async_context(House(configuration(tmp_path, **sections)).running())
            for name, engine in list(zip("ab", engines, strict=True))[:replicas]:
                await house.replica(name, engine.url)
            return house

        yield make


@pytest.fixture
async def house(make_house: MakeHouse) -> House:
    return await make_house()


@pytest.fixture(params=["sqlite", "postgresql"])
def state_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.db"
    url: str = request.getfixturevalue("postgres")
    return emptied(url)


@pytest.fixture(autouse=True)
def _upstream_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", KEY)

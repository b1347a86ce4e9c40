"""`GET /v1/usage`: a key sees its own tenant's usage and costs, and errors are OpenAI's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from sqlalchemy.exc import OperationalError

from cluster.scheduling import ServiceWeights
from cluster.state import Store
from serve_apps.gateway.apis.usage import usage_page
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.errors import ApiError
from tests.unit.serve_apps.harness import House
from tests.unit.state.records import record

CALLER = Caller("a", "k")
NOW_S = 10_000.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(f"sqlite:///{tmp_path}/s.db")
    store.create()
    store.touch_replica("r", "m", "d", 3.6, 0.0, 1000.0)
    store.touch_replica("unused", "m", "e", 3.6, 0.0, 1000.0)
    store.add_usage([record(1), record(2, tenant="b", output_tokens=27), record(3, key_id="l", prompt_tokens=4)])
    return store


def page(store: Store, query: bytes = b"") -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(usage_page(store, CALLER, query, ServiceWeights(), NOW_S))
    return found


def test_only_the_own_tenant_is_shown_with_its_share_of_the_costs(store: Store) -> None:
    found = page(store)
    (line,) = found["data"]
    assert found["tenant"] == line["tenant"] == "a" and found["total"]["usd"] == line["usd"]
    assert (line["requests"], line["prompt_tokens"], line["output_tokens"]) == (2, 14, 14)
    assert line["usd"] == pytest.approx(34 / 94) and line["replica_seconds"] == pytest.approx(1000 * 34 / 94)


def test_groups_and_periods(store: Store) -> None:
    keys = page(store, b"group_by=key")["data"]
    assert [(line["key"], line["requests"]) for line in keys] == [("k", 1), ("l", 1)]
    found = page(store, b"since=1002&until=1970-01-01T02%3A00Z&group_by=day")
    assert (found["since"], found["until"]) == (1002.0, 7200.0)
    assert [(line["day"], line["requests"]) for line in found["data"]] == [("1970-01-01", 1)]


@pytest.mark.parametrize(
    ("query", "param", "said"),
    [
        (b"tenant=b", "tenant", "unknown parameter 'tenant'"),
        (b"group_by=tenant", "group_by", "key, model, class, day"),
        (b"since=soon", "since", "Unix seconds"),
        (b"until=2&since=3", "since", "not before"),
        (b"since=1&since=2", None, "twice"),
        (b"since=%ff", "since", "Unix seconds"),
    ],
)
def test_bad_parameters_are_refused_with_the_cure(store: Store, query: bytes, param: str | None, said: str) -> None:
    with pytest.raises(ApiError) as raised:
        page(store, query)
    assert (raised.value.status, raised.value.param) == (400, param) and said in raised.value.message


def test_a_store_that_is_away_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise OperationalError("SELECT", {}, Exception("away"))

    monkeypatch.setattr(store, "usage_lines", away)
    with pytest.raises(ApiError) as raised:
        page(store)
    assert (raised.value.status, raised.value.code) == (503, "store_unavailable")


async def test_through_the_gateway(house: House) -> None:
    house.store.add_usage([record(1, tenant="default", finished_at_s=4000.0), record(2, tenant="other")])
    headers = {"authorization": f"Bearer {house.keys['default']}"}
    async with aiohttp.ClientSession(house.url) as client:
        async with client.get("/v1/usage?since=0&group_by=model", headers=headers) as answer:
            found = await answer.json()
        assert answer.status == 200 and [line["model"] for line in found["data"]] == ["m"]
        async with client.get("/v1/usage?since=x", headers=headers) as answer:
            assert answer.status == 400 and (await answer.json())["error"]["param"] == "since"
        async with client.get("/v1/usage") as answer:
            assert answer.status == 401
        async with client.post("/v1/usage", headers=headers) as answer:
            assert answer.status == 405

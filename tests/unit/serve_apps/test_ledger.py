"""The bill: one row a request that ran, with exactly the tokens that the engine reported."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy.exc import OperationalError

from cluster.state import Store, UsageRecord
from serve_apps.gateway import ledger as ledger_module
from serve_apps.gateway.ledger import Ledger
from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.harness import CHAT, House, chat
from tests.unit.serve_apps.servers import eventually


async def usage_seen(house: House, path: str, body: dict[str, Any], tenant: str) -> tuple[str, tuple[int, int, int]]:
    """The request's id and the usage that its client was told: prompt, cached, output."""
    async with house.session(tenant) as http, http.post(path, json=body) as answer:
        assert answer.status == 200
        raw = await answer.read()
        request_id = answer.headers["x-tribes-request-id"]
    if body.get("stream"):
        raw = raw.split(b"\n\n")[-3].removeprefix(b"data: ")
    usage = orjson.loads(raw)["usage"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return request_id, (usage["prompt_tokens"], cached, usage["completion_tokens"])


async def test_two_hundred_at_once_are_billed_exactly(make_house: MakeHouse) -> None:
    house = await make_house(replicas=2, max_running=16, tenants={"a": {}, "b": {}, "c": {}})
    dice = random.Random(1)

    def wish() -> tuple[str, dict[str, Any], str]:
        text, tokens, tenant = "word " * dice.randint(1, 150), dice.randint(1, 30), dice.choice("abc")
        fields = {"max_tokens": tokens, "stream": dice.random() < 0.5, "x_script": {"tokens": 40, "ttft_ms": 5}}
        if fields["stream"]:
            fields["stream_options"] = {"include_usage": True}
        if dice.random() < 0.2:
            return "/v1/completions", {"model": "m", "prompt": text, **fields}, tenant
        return CHAT, chat(text, service_tier=dice.choice(["default", "flex"]), **fields), tenant

    wishes = [wish() for _ in range(200)]
    seen = dict(await asyncio.gather(*(usage_seen(house, *wish) for wish in wishes)))
    rows = await house.ledger(200)
    assert {r.request_id: (r.prompt_tokens, r.cached_tokens, r.output_tokens) for r in rows} == seen
    assert len(rows) == 200 and any(r.cached_tokens for r in rows)
    assert sorted(r.tenant for r in rows) == sorted(tenant for _, _, tenant in wishes)
    for row in rows:
        assert row.status == 200 and row.deployment == "d" and 0 <= row.queue_wait_s <= row.duration_s
        assert row.ttft_s is None or row.queue_wait_s <= row.ttft_s <= row.duration_s
    await house.quiet()


async def test_usage_is_billed_when_nobody_asked_for_it(house: House) -> None:
    async with house.session() as http, http.post(CHAT, json=chat("x" * 400, stream=True, max_tokens=7)) as answer:
        await answer.read()
    [row] = await house.ledger(1)
    assert (row.prompt_tokens, row.output_tokens, row.status) == (100, 7, 200)


async def test_embeddings_are_billed(house: House) -> None:
    body = {"model": "m", "input": "x" * 80}
    request_id, usage = await usage_seen(house, "/v1/embeddings", body, "default")
    [row] = await house.ledger(1)
    assert (row.request_id, (row.prompt_tokens, row.cached_tokens, row.output_tokens)) == (request_id, usage)


async def test_what_runs_when_the_gateway_leaves_is_written(make_house: MakeHouse) -> None:
    house = await make_house()
    await asyncio.gather(*(house.ask() for _ in range(5)))
    await house.gateway._ledger.close()
    assert len(house.store.usage()) == 5
    house.gateway._ledger.start()


class ShakyStore(Store):
    """Fails the first writes; can hold one back."""

    def __init__(self, url: str, failures: int = 0) -> None:
        super().__init__(url)
        self.create()
        self.failures = failures
        self.tries = 0
        self.gate = threading.Event()
        self.gate.set()

    def add_usage(self, records: Any) -> None:
        self.tries = this_try = self.tries + 1
        self.gate.wait(5)
        if this_try <= self.failures:
            raise OperationalError("INSERT", {}, Exception("database is locked"))
        super().add_usage(records)


def record(number: int) -> UsageRecord:
    return UsageRecord(f"r{number}", "t", "k", "m", "d", "online", 1, 0, 1, 0.0, None, 1.0, 200, float(number))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "FLUSH_S", 0.05)


async def test_a_store_that_fails_is_tried_again(tmp_path: Path) -> None:
    store = ShakyStore(f"sqlite:///{tmp_path}/s.db", failures=3)
    ledger = Ledger(store)
    ledger.start()
    for number in range(10):
        ledger.add(record(number))
        await asyncio.sleep(0.03)
    await eventually(lambda: len(store.usage()) == 10)
    assert store.tries > 3
    await ledger.close()
    assert [r.request_id for r in store.usage()] == [f"r{n}" for n in range(10)]


async def test_closing_in_the_middle_of_a_write_loses_nothing(tmp_path: Path) -> None:
    store = ShakyStore(f"sqlite:///{tmp_path}/s.db", failures=1)  # the write under way will fail
    ledger = Ledger(store)
    ledger.start()
    ledger.add(record(0))
    store.gate.clear()
    await eventually(lambda: store.tries == 1)
    ledger.add(record(1))
    closing = asyncio.create_task(ledger.close())
    await asyncio.sleep(0.1)
    store.gate.set()
    await closing
    await eventually(lambda: len(store.usage()) == 2)


async def test_the_last_records_are_tried_more_than_once(tmp_path: Path) -> None:
    store = ShakyStore(f"sqlite:///{tmp_path}/s.db", failures=2)
    ledger = Ledger(store)
    ledger.add(record(0))
    await ledger.close()
    assert len(store.usage()) == 1


async def test_what_is_lost_at_the_end_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(ShakyStore(f"sqlite:///{tmp_path}/s.db", failures=100))
    ledger.add(record(0))
    ledger.add(record(1))
    await ledger.close()
    assert "2 usage records are lost" in caplog.text


async def test_a_full_ledger_drops_rather_than_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "MAX_PENDING", 3)
    store = ShakyStore(f"sqlite:///{tmp_path}/s.db")
    ledger = Ledger(store)
    for number in range(5):
        ledger.add(record(number))
    await ledger.close()
    assert len(store.usage()) == 3

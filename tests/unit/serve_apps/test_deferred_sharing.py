"""Batches that share a worker: who is refused takes nothing from others, and nothing takes all threads or memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config import TribesConfig
from cluster.scheduling import TokenUsage
from cluster.state import Store
from serve_apps.deferred import lines, queue_lines
from serve_apps.deferred.batch_run import BatchRun
from serve_apps.deferred.lines import Scan
from serve_apps.deferred.runner import Request, Runner
from serve_apps.deferred.shop import WHOLE_FILES_AT_ONCE, Shop
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.headless import Outcome
from tests.unit.serve_apps.deferred_work import ScriptedRunner, jsonl, line, sections, shop_of, with_parts
from tests.unit.serve_apps.harness import configuration
from tests.unit.serve_apps.servers import eventually
from tests.unit.serve_apps.test_deferred_crashes import accept

IN_FLIGHT = 3


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    plain = configuration(tmp_path, **sections(tmp_path, batches={"max_in_flight": IN_FLIGHT}))
    config = TribesConfig.model_validate(plain)
    store = Store(config.state.url)
    store.create()
    store.add_tenants({"a": {}, "b": {}})
    yield shop_of(config, store, ScriptedRunner())
    store.close()


def many(count: int, **body: Any) -> bytes:
    return jsonl(*(line(number, **body) for number in range(count)))


class Refusing:
    """A queue that has no budget left for one tenant."""

    def __init__(self, refused: str) -> None:
        self.refused = refused
        self.refusals = 0

    async def run(self, path: str, body: bytes, caller: Caller, leases: Any, **named: Any) -> Outcome:
        if caller.tenant == self.refused:
            self.refusals += 1
            return Outcome(429, b"{}", named["request_id"], None, 3600.0)
        return Outcome(200, b"{}", named["request_id"], TokenUsage(3, 1, 2))


async def test_a_tenant_that_is_refused_takes_nobodys_place(shop: Shop) -> None:
    headless, leases = Refusing("a"), {"m": object()}
    shop = with_parts(shop, runner=Runner(lambda finished: headless, leases, 3))  # type: ignore[arg-type]
    accept(shop, many(50))
    (poor,) = shop.deferred.batches.claim("w", time.time(), 10.0, 1, 1)
    waits = asyncio.create_task(BatchRun(shop, poor).run())
    try:
        await eventually(lambda: headless.refusals == IN_FLIGHT)
        rich = accept(shop, many(20), tenant="b")
        (claimed,) = shop.deferred.batches.claim("w", time.time(), 10.0, 1, 1)
        async with asyncio.timeout(10):
            await BatchRun(shop, claimed).run()
        found = shop.deferred.batches.get("b", rich.id)
        assert found is not None and found.completed == 20
        assert headless.refusals == IN_FLIGHT and not waits.done(), "asleep, and no line more was begun"
    finally:
        waits.cancel()
        await asyncio.wait({waits})


@pytest.mark.parametrize(("max_bytes", "most"), [(1 << 20, IN_FLIGHT), (700, 2), (10, 1)])
async def test_a_batch_has_so_much_under_way(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, max_bytes: int, most: int
) -> None:
    async def slowly(request: Request) -> None:
        await asyncio.sleep(0.005)

    monkeypatch.setattr(queue_lines, "MAX_BYTES_UNDER_WAY", max_bytes)
    runner = ScriptedRunner(answer=slowly)
    shop = with_parts(shop, runner=runner)
    accept(shop, many(9, text="x" * 200))  # some 300 bytes a line
    (batch,) = shop.deferred.batches.claim("w", time.time(), 10.0, 1, 1)
    await BatchRun(shop, batch).run()
    assert (len(runner.runs), runner.most) == (9, most)


async def test_few_files_are_read_at_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of batches that were given up meanwhile: a thread cannot be stopped."""
    reading: list[int] = []
    most = 0
    real: Callable[..., Scan] = lines.scan

    def slowly(*arguments: Any) -> Scan:
        nonlocal most
        reading.append(1)
        most = max(most, len(reading))
        time.sleep(0.1)
        reading.pop()
        return real(*arguments)

    monkeypatch.setattr(lines, "scan", slowly)
    for _ in range(6):
        accept(shop, many(1))
    batches = shop.deferred.batches.claim("w", time.time(), 10.0, 9, 9)
    work = [asyncio.create_task(BatchRun(shop, batch).run()) for batch in batches]
    await eventually(lambda: len(reading) == WHOLE_FILES_AT_ONCE)
    work[0].cancel()
    work[1].cancel()
    await asyncio.gather(*work, return_exceptions=True)
    done = [shop.deferred.batches.get("a", batch.id) for batch in batches]
    assert most == WHOLE_FILES_AT_ONCE and [batch.completed for batch in done if batch] == [0, 0, 1, 1, 1, 1]

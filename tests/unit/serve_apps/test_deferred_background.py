"""Background requests as the worker runs them: once, billed once, in turns, cancelled, expired, taken over."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from cluster.config import TribesConfig
from cluster.state import Store
from cluster.state.deferred import BackgroundRow
from serve_apps.deferred import worker as worker_module
from serve_apps.deferred.runner import Request
from serve_apps.deferred.shop import Shop
from serve_apps.deferred.worker import Worker
from tests.unit.serve_apps.deferred_work import ScriptedRunner, sections, shop_of, with_parts
from tests.unit.serve_apps.harness import chat, configuration
from tests.unit.serve_apps.servers import eventually

PATH = "/v1/chat/completions"
STALE_S = 3.0
"""Long enough that a busy machine delays no heartbeat by half of it."""


@pytest.fixture
def shop(tmp_path: Path, state_url: str) -> Iterator[Shop]:
    more = sections(tmp_path, batches={"stale_after_s": STALE_S}, state={"url": state_url})
    config = TribesConfig.model_validate(configuration(tmp_path, **more))
    store = Store(config.state.url)
    store.create()
    yield shop_of(config, store, ScriptedRunner())
    store.close()


@asynccontextmanager
async def at_work(shop: Shop, owner: str = "w1") -> AsyncIterator[Worker]:
    worker = Worker(shop, owner)
    worker.start()
    try:
        yield worker
        worker.check()
    finally:
        await worker.close()


def accept(shop: Shop, id: str, tenant: str = "a", life_s: float = 60.0, **fields: Any) -> None:
    now_s = time.time()
    body = orjson.dumps(chat(**fields))
    shop.deferred.create_background(id, tenant, "k", PATH, body, "online", now_s, now_s + life_s)


def get(shop: Shop, id: str, tenant: str = "a") -> BackgroundRow:
    row = shop.deferred.get_background(tenant, id)
    assert row is not None
    return row


async def forever(request: Request) -> None:
    await asyncio.Event().wait()


async def test_a_request_is_run_and_billed(shop: Shop) -> None:
    accept(shop, "r1")
    assert get(shop, "r1").status == "queued" and shop.deferred.get_background("b", "r1") is None
    async with at_work(shop):
        await eventually(lambda: get(shop, "r1").status == "completed")
    row = get(shop, "r1")
    assert row.http_status == 200 and row.finished_at_s is not None and row.finished_at_s >= row.created_at_s
    assert row.response is not None and orjson.loads(row.response)["of"] == "r1"
    (usage,) = shop.store.usage()
    assert (usage.request_id, usage.request_class, usage.tenant) == ("r1", "online", "a")


async def test_an_error_is_a_result(shop: Shop) -> None:
    accept(shop, "r1", status=400)
    async with at_work(shop):
        await eventually(lambda: get(shop, "r1").status == "failed")
    assert get(shop, "r1").http_status == 400


async def test_a_cancelled_or_deleted_request_is_stopped(shop: Shop) -> None:
    runner = ScriptedRunner(answer=forever)
    accept(shop, "r1")
    accept(shop, "r2")
    async with at_work(with_parts(shop, runner=runner)):
        await eventually(lambda: runner.running == 2)
        assert shop.deferred.cancel_background("b", "r1") is None and not shop.deferred.delete_background("b", "r2")
        cancelled = shop.deferred.cancel_background("a", "r1")
        assert cancelled is not None and cancelled.status == "cancelled"
        assert shop.deferred.delete_background("a", "r2")
        await eventually(lambda: runner.running == 0)
    assert get(shop, "r1").status == "cancelled" and shop.store.usage() == []
    again = shop.deferred.cancel_background("a", "r1")
    assert again is not None and again.finished_at_s == get(shop, "r1").finished_at_s


async def test_a_request_expires_and_can_be_read_for_a_day(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    accept(shop, "r1", life_s=0.3)
    async with at_work(with_parts(shop, runner=ScriptedRunner(answer=forever))) as worker:
        await eventually(lambda: get(shop, "r1").status == "incomplete")
        await asyncio.sleep(3 * shop.pace.house_s)
        assert get(shop, "r1").finished_at_s is not None
        monkeypatch.setattr("cluster.state.deferred.KEEP_S", 0.1)
        await eventually(lambda: shop.deferred.get_background("a", "r1") is None)
        worker.check()


async def test_a_dead_workers_request_is_taken_over(shop: Shop) -> None:
    accept(shop, "r1")
    (dead,) = shop.deferred.claim_background("dead", time.time(), STALE_S, 9, 9)
    async with at_work(shop):
        await asyncio.sleep(0.3)
        assert get(shop, "r1").status == "in_progress", "not before its heartbeat is stale"
        await eventually(lambda: get(shop, "r1").status == "completed")
    assert not shop.deferred.finish_background("r1", dead.fence, "failed", 500, b"{}", (), time.time())
    assert get(shop, "r1").status == "completed" and len(shop.store.usage()) == 1


async def test_a_claim_that_nobody_heard_of_is_made_again(shop: Shop) -> None:
    """The store took the claim and its answer was lost: no heartbeat may keep what nobody works on."""
    gate = asyncio.Event()

    async def wait(request: Request) -> None:
        if request.id == "busy":
            await gate.wait()

    runner = ScriptedRunner(answer=wait)
    accept(shop, "lost")
    assert shop.deferred.claim_background("w1", time.time(), STALE_S, 9, 9)
    accept(shop, "busy")
    async with at_work(with_parts(shop, runner=runner), "w1"):
        await eventually(lambda: get(shop, "lost").status == "completed")
        assert get(shop, "busy").status == "in_progress"
        gate.set()
        await eventually(lambda: get(shop, "busy").status == "completed")
    assert sorted(runner.runs) == ["busy", "lost"]


async def test_a_live_workers_request_is_not_taken_over(shop: Shop) -> None:
    gate = asyncio.Event()

    async def wait(request: Request) -> None:
        await gate.wait()

    runner, other = ScriptedRunner(answer=wait), ScriptedRunner()
    accept(shop, "r1")
    async with at_work(with_parts(shop, runner=runner)):
        await eventually(lambda: runner.running == 1)
        async with at_work(with_parts(shop, runner=other), "w2"):
            await asyncio.sleep(1.5 * STALE_S)  # more than what makes a silent worker's rows free
            gate.set()
            await eventually(lambda: get(shop, "r1").status == "completed")
    assert runner.runs == ["r1"] and other.runs == []


async def test_a_worker_that_leaves_gives_back_at_once(shop: Shop) -> None:
    runner = ScriptedRunner(answer=forever)
    accept(shop, "r1")
    async with at_work(with_parts(shop, runner=runner)):
        await eventually(lambda: runner.running == 1)
    assert get(shop, "r1").status == "queued"
    async with at_work(shop, "w2"):
        await eventually(lambda: get(shop, "r1").status == "completed", STALE_S / 2)


async def test_tenants_take_turns(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant with a thousand requests holds no more than its part of a worker."""
    monkeypatch.setattr(worker_module, "MAX_BACKGROUND", 6)
    monkeypatch.setattr(worker_module, "BACKGROUND_OF_ONE_TENANT", 4)
    runner = ScriptedRunner(answer=forever)
    for number in range(50):
        accept(shop, f"a{number}")
    async with at_work(with_parts(shop, runner=runner)):
        await eventually(lambda: runner.running == 4)
        accept(shop, "b0", tenant="b")
        await eventually(lambda: "b0" in runner.runs)
        assert sorted(runner.runs) == ["a0", "a1", "a2", "a3", "b0"]


async def test_tenants_that_are_refused_do_not_fill_a_worker(shop: Shop) -> None:
    """Their requests wait for midnight here, asleep."""

    async def refused(request: Request) -> None:
        if request.caller.tenant != "rich":
            await asyncio.Event().wait()

    for tenant in ("p0", "p1", "p2", "p3"):
        for number in range(worker_module.BACKGROUND_OF_ONE_TENANT):
            accept(shop, f"{tenant}-{number}", tenant)
    runner = ScriptedRunner(answer=refused)
    async with at_work(with_parts(shop, runner=runner)):
        await eventually(lambda: runner.running == 4 * worker_module.BACKGROUND_OF_ONE_TENANT)
        accept(shop, "r", "rich")
        await eventually(lambda: get(shop, "r", "rich").status == "completed")


async def test_heartbeats_do_not_wait_for_other_work(shop: Shop) -> None:
    """All threads of the loop are taken for longer than a claim may be silent."""
    runner, free = ScriptedRunner(answer=forever), threading.Event()
    accept(shop, "r1")
    async with at_work(with_parts(shop, runner=runner)):
        await eventually(lambda: runner.running == 1)
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        taken = asyncio.create_task(asyncio.to_thread(free.wait, 10 * STALE_S))
        try:
            await asyncio.sleep(0.7 * STALE_S)  # it would have given up after half
            accept(shop, "r2")
            await eventually(lambda: runner.running == 2)
            assert runner.runs == ["r1", "r2"]
        finally:
            free.set()
            await taken


def test_troubles_do_not_grow(shop: Shop) -> None:
    worker = Worker(shop, "w1")
    old, recent = worker_module._Troubles(5000), worker_module._Troubles()
    old.again()
    assert old.until_s - time.monotonic() <= worker_module.LONGEST_RETRY_S
    recent.again()
    old.until_s -= worker_module.FORGET_TROUBLES_S + worker_module.LONGEST_RETRY_S
    worker._troubles.update(old=old, recent=recent)
    worker._forget_troubles()
    assert list(worker._troubles) == ["recent"]


async def test_a_worker_without_its_store_gives_up_its_work(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others may soon take over must not run twice: the worker stops first."""
    runner = ScriptedRunner(answer=forever)
    accept(shop, "r1")
    async with at_work(with_parts(shop, runner=runner)):
        await eventually(lambda: runner.running == 1)
        began_s = time.monotonic()

        def away(*_: Any) -> None:
            raise OSError("the store is away")

        with monkeypatch.context() as patch:
            patch.setattr(shop.deferred, "beat_background", away)
            patch.setattr(shop.deferred, "claim_background", away)
            await eventually(lambda: runner.running == 0)
            assert time.monotonic() - began_s < STALE_S
        await eventually(lambda: len(runner.runs) == 2)  # it is back, and takes the request anew

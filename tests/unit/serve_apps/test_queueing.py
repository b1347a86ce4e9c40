"""Waiting for a slot: order among tenants and classes, bounds, limits, and giving up."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.harness import CHAT, House, chat
from tests.unit.serve_apps.servers import eventually

HOLD = {"hang_after_tokens": 1}
QUICK = {"prompt_tokens": 10, "tokens": 10}


async def occupy(house: House, tenant: str = "default", count: int = 1) -> list[asyncio.Task[Any]]:
    """Requests that run until cancelled."""
    began = [asyncio.Event() for _ in range(count)]

    async def hold(event: asyncio.Event) -> None:
        async with house.session(tenant) as http, http.post(CHAT, json=chat(stream=True, x_script=HOLD)) as answer:
            await answer.content.readany()
            event.set()
            await answer.read()

    tasks = [asyncio.create_task(hold(event)) for event in began]
    await asyncio.gather(*(event.wait() for event in began))
    return tasks


async def free(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def order_of_service(house: House, wishes: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Tenants in the order in which their requests end, all sent while the only slot is taken."""
    blocker = await occupy(house)
    served: list[str] = []

    async def ask(tenant: str, fields: dict[str, Any]) -> None:
        assert (await house.ask(tenant, x_script=QUICK, **fields))[0] == 200
        served.append(tenant)

    tasks = []
    for tenant, fields in wishes:
        tasks.append(asyncio.create_task(ask(tenant, fields)))
        expected = len(tasks)
        await eventually(lambda n=expected: waiting_now(house) == n)
    await free(blocker)
    await asyncio.gather(*tasks)
    await house.quiet()
    return served


def waiting_now(house: House) -> int:
    return len(house.dispatcher()._queue._waiting)


async def test_three_tenants_take_turns(make_house: MakeHouse) -> None:
    house = await make_house(max_running=1, tenants={"a": {}, "b": {}, "c": {}})
    served = await order_of_service(house, [(t, {"max_tokens": 10}) for t in "aaaabbbbcccc"])
    for start in range(0, 12, 3):
        assert sorted(served[start : start + 3]) == ["a", "b", "c"], served


async def test_weights_share_the_slot(make_house: MakeHouse) -> None:
    house = await make_house(max_running=1, tenants={"heavy": {"weight": 3}, "light": {"weight": 1}})
    await eventually(lambda: "heavy" in house.dispatcher()._feed._known)
    served = await order_of_service(house, [(t, {"max_tokens": 10}) for t in ["light"] * 8 + ["heavy"] * 8])
    assert 5 <= served[:8].count("heavy") <= 7, served


async def test_one_tenants_requests_keep_their_order(make_house: MakeHouse) -> None:
    house = await make_house(max_running=1)
    blocker = await occupy(house)
    ended: list[int] = []

    async def ask(number: int) -> None:
        await house.ask(x_script=QUICK)
        ended.append(number)

    tasks = []
    for number in range(6):
        tasks.append(asyncio.create_task(ask(number)))
        await eventually(lambda n=number: waiting_now(house) == n + 1)
    await free(blocker)
    await asyncio.gather(*tasks)
    assert ended == list(range(6))


async def test_online_goes_before_flex(make_house: MakeHouse) -> None:
    house = await make_house(
        max_running=1, tenants={"a": {}, "b": {}}, scheduling={"classes": {"semi_online": {"floor": 0}}}
    )
    wishes = [("a", {"service_tier": "flex"})] * 3 + [("b", {"service_tier": "default"})] * 3
    assert await order_of_service(house, wishes) == ["b"] * 3 + ["a"] * 3


async def test_a_full_queue_answers_429_with_retry_after(make_house: MakeHouse) -> None:
    house = await make_house(max_running=1, scheduling={"classes": {"online": {"max_queued": 2}}})
    blocker = await occupy(house)
    waiting = [asyncio.create_task(house.ask(x_script=QUICK)) for _ in range(2)]
    await eventually(lambda: waiting_now(house) == 2)
    async with house.session() as http, http.post(CHAT, json=chat()) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["type"], error["code"]) == (429, "rate_limit_error", "queue_full")
        assert 1 <= int(answer.headers["retry-after"]) <= 600
        assert 1000 <= int(answer.headers["retry-after-ms"]) <= 600_000
    with pytest.raises(openai.RateLimitError):
        await house.openai().chat.completions.create(model="m", messages=chat()["messages"])
    await free(blocker)
    assert [status for status, _ in await asyncio.gather(*waiting)] == [200, 200]


async def test_waiting_too_long_answers_503(make_house: MakeHouse) -> None:
    house = await make_house(max_running=1, scheduling={"classes": {"online": {"max_wait_s": 0.5}}})
    blocker = await occupy(house)
    async with house.session() as http, http.post(CHAT, json=chat()) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (503, "queue_timeout")
        assert int(answer.headers["retry-after"]) >= 1
    with pytest.raises(openai.InternalServerError):
        await house.openai().chat.completions.create(model="m", messages=chat()["messages"])
    await free(blocker)
    await house.quiet()
    assert [r.status for r in await house.ledger(1)] == [499]


async def test_waiting_ends_although_the_store_is_away(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    house = await make_house(max_running=1, scheduling={"classes": {"online": {"max_wait_s": 0.5}}})
    blocker = await occupy(house)

    def away() -> None:
        raise OSError("the store is away")

    monkeypatch.setattr(house.dispatcher()._store, "tenants", away)
    await asyncio.sleep(2.2)  # the next refresh is due
    async with asyncio.timeout(3):
        assert (await house.ask())[0] == 503
    await free(blocker)


async def test_no_replica_at_all_waits_and_then_runs(make_house: MakeHouse, engines: list[Any]) -> None:
    house = await make_house(replicas=0)
    task = asyncio.create_task(house.ask())
    await eventually(lambda: waiting_now(house) == 1)
    await house.replica("late", engines[0].url)
    assert (await task)[0] == 200


async def test_a_tenants_own_concurrency_is_kept(make_house: MakeHouse, engines: list[Any]) -> None:
    house = await make_house(max_running=8, tenants={"small": {"limits": {"max_concurrent": 2}}, "big": {}})
    await eventually(lambda: "small" in house.dispatcher()._office.limited)
    tasks = [asyncio.create_task(house.ask("small", x_script={"ttft_ms": 150})) for _ in range(6)]
    await eventually(lambda: waiting_now(house) == 4)
    assert await house.running_leases() == 2
    assert (await house.ask("big"))[0] == 200  # not held up by the others' limit
    assert [status for status, _ in await asyncio.gather(*tasks)] == [200] * 6
    await house.quiet()


async def test_a_tenant_that_may_not_wait_is_refused(make_house: MakeHouse) -> None:
    limits = {"max_concurrent": 1, "max_queued": 0}
    house = await make_house(tenants={"small": {"limits": limits}})
    await eventually(lambda: "small" in house.dispatcher()._office.limited)
    running = await occupy(house, "small")
    status, body = await house.ask("small")
    assert (status, body["error"]["code"]) == (429, "tenant_queue_full")
    await free(running)
    await house.quiet()
    assert (await house.ask("small"))[0] == 200


async def test_requests_per_minute(make_house: MakeHouse) -> None:
    house = await make_house(tenants={"small": {"limits": {"requests_per_minute": 3}}})
    await eventually(lambda: "small" in house.dispatcher()._office.limited)
    answers = [await house.ask("small") for _ in range(4)]
    assert [status for status, _ in answers] == [200, 200, 200, 429]
    assert answers[3][1]["error"]["code"] == "rate_limit_exceeded"

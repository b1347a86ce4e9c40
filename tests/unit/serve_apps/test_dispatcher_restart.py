"""The dispatcher dies and comes back with nothing in its memory: clients do not notice, nothing is lost or doubled."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.harness import CHAT, House, chat
from tests.unit.serve_apps.servers import Engine, eventually
from tests.unit.serve_apps.test_queueing import QUICK, free, occupy, waiting_now


@pytest.mark.parametrize("away_s", [0.0, 0.5])
async def test_waiting_requests_are_served_in_their_order(
    make_house: MakeHouse, engines: list[Engine], away_s: float
) -> None:
    house = await make_house(max_running=1)
    blocker = await occupy(house)
    started = (await engines[0].stats())["started"]
    ended: list[int] = []

    async def ask(number: int) -> None:
        assert (await house.ask(x_script=QUICK))[0] == 200
        ended.append(number)

    tasks = []
    for number in range(8):
        tasks.append(asyncio.create_task(ask(number)))
        await eventually(lambda n=number: waiting_now(house) == n + 1)
    await house.restart_dispatcher(away_s)
    await eventually(lambda: waiting_now(house) == 8)
    assert await house.running_leases() == 1  # the blocker kept its lease
    await free(blocker)
    await asyncio.gather(*tasks)
    assert ended == list(range(8))
    assert (await engines[0].stats())["started"] == started + 8
    await house.quiet()
    assert len({r.request_id for r in await house.ledger(9)}) == 9


async def test_streams_do_not_notice(make_house: MakeHouse) -> None:
    house = await make_house(max_running=4)

    async def stream() -> bytes:
        body = chat(stream=True, x_script={"itl_ms": 50, "tokens": 20})
        async with house.session() as http, http.post(CHAT, json=body) as answer:
            return await answer.read()

    tasks = [asyncio.create_task(stream()) for _ in range(4)]
    await eventually(lambda: len(house.dispatcher()._queue.leases()) == 4)
    await house.restart_dispatcher(0.2)
    await eventually(lambda: len(house.dispatcher()._queue.leases()) == 4)
    for text in await asyncio.gather(*tasks):
        assert b"w19" in text and text.endswith(b"data: [DONE]\n\n") and b"error" not in text
    await house.quiet()
    assert [(r.status, r.output_tokens) for r in await house.ledger(4)] == [(200, 20)] * 4


async def test_slots_are_not_given_out_twice_after_a_restart(make_house: MakeHouse) -> None:
    house = await make_house(max_running=2)
    running = await occupy(house, count=2)
    waiting = [asyncio.create_task(house.ask(x_script=QUICK)) for _ in range(4)]
    await eventually(lambda: waiting_now(house) == 4)
    for _ in range(3):
        await house.restart_dispatcher()
        await eventually(lambda: waiting_now(house) == 4 and bool(house.dispatcher()._queue.replicas()))
        await asyncio.sleep(0.2)
        assert await house.running_leases() == 2
    await free(running)
    assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * 4
    await house.quiet()


async def test_requests_that_come_while_it_is_away(make_house: MakeHouse) -> None:
    house = await make_house()
    house.handles["m"].kill()
    tasks = [asyncio.create_task(house.ask()) for _ in range(5)]
    leaver = asyncio.create_task(house.ask())
    await asyncio.sleep(0.3)
    await free([leaver])
    house.handles["m"].restart(house.new_dispatcher())
    assert [status for status, _ in await asyncio.gather(*tasks)] == [200] * 5
    await house.quiet()


async def test_a_dispatcher_that_stays_away_is_a_503(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_apps.gateway.courses.attempt.ACQUIRE_SLACK_S", 0.1)
    house = await make_house(scheduling={"classes": {"online": {"max_wait_s": 0.2}}})
    house.handles["m"].kill()
    status, body = await house.ask()
    assert (status, body["error"]["code"]) == (503, "dispatcher_unavailable")
    house.handles["m"].restart(house.new_dispatcher())
    await house.quiet()


async def test_a_replica_that_died_meanwhile_is_missed(
    make_house: MakeHouse, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_apps.replica_book.SILENCE_S", 0.5)
    house = await make_house()
    task = asyncio.create_task(house.ask(x_script={"hang_after_tokens": 0}))
    await eventually(lambda: len(house.dispatcher()._queue.leases()) == 1)
    house.silence("a")  # its node is gone; no connection ends
    await house.restart_dispatcher()
    await eventually(lambda: waiting_now(house) == 1)
    await free([task])
    await house.quiet()


@pytest.mark.parametrize("method", ["exchange", "next_answers", "hello"])
@pytest.mark.parametrize("times", [1, 3])
async def test_lost_answers_leak_nothing(make_house: MakeHouse, method: str, times: int) -> None:
    house = await make_house(max_running=2)
    for _ in range(3):
        if method == "hello":
            house.handles["m"].lose_answers("exchange")
        house.handles["m"].lose_answers(method, times)
        tasks = [asyncio.create_task(house.ask(x_script={"ttft_ms": 30})) for _ in range(8)]
        async with asyncio.timeout(10):
            assert [status for status, _ in await asyncio.gather(*tasks)] == [200] * 8
        await house.quiet()
    assert house.handles["m"].called["hello"] > 1 or method == "next_answers"
    assert len(await house.ledger(24)) == 24


async def test_a_poll_from_before_a_hello_takes_nothing(make_house: MakeHouse) -> None:
    """The dispatcher goes on with a poll whose caller has gone; a grant that it takes would be lost."""
    house = await make_house(max_running=1)
    blocker = await occupy(house)
    handle = house.handles["m"]
    handle.lose_answers("next_answers", 4)
    handle.lose_answers("exchange", 1)
    tasks = [asyncio.create_task(house.ask(x_script=QUICK)) for _ in range(3)]
    await eventually(lambda: waiting_now(house) == 3)
    await asyncio.sleep(0.5)
    await free(blocker)
    async with asyncio.timeout(5):
        assert [status for status, _ in await asyncio.gather(*tasks)] == [200] * 3
    await house.quiet()


async def test_a_gateway_that_was_forgotten_comes_back(make_house: MakeHouse) -> None:
    house: House = await make_house(max_running=1)
    running = await occupy(house)
    waiting = asyncio.create_task(house.ask(x_script=QUICK))
    await eventually(lambda: waiting_now(house) == 1)
    house.dispatcher()._office.drop_gateway("gw-1")  # it was silent for too long
    assert waiting_now(house) == 0
    await free(running)
    assert (await waiting)[0] == 200
    await house.quiet()

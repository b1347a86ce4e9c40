"""Replicas that fail before the first byte are replaced unseen; after it, with continuations off, the stream ends with
an error event. (With them: test_going_on.py.)
"""

from __future__ import annotations

import asyncio

import openai
import orjson
import pytest

from cluster.engines import free_port
from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.harness import CHAT, House, chat
from tests.unit.serve_apps.odd_engine import OddEngine
from tests.unit.serve_apps.servers import Engine, eventually, scripted_engine, served

TOO_BUSY = OddEngine(status=503, parts=[b'{"error":{"message":"busy"}}'])
OTHER_KEY = OddEngine(status=401, parts=[b'{"error":"Unauthorized"}'])
EMPTY_STREAM = OddEngine(content_type=b"text/event-stream")
NO_EVENT = OddEngine(content_type=b"text/event-stream", parts=[b"data: {"])


async def asked_through(house: House, stream: bool, count: int = 6) -> list[int]:
    """Statuses of several requests of one session: the placement would send them all to the same replica."""

    async def ask() -> int:
        async with house.session() as http, http.post(CHAT, json=chat("same", stream=stream, max_tokens=3)) as answer:
            text = await answer.read()
            assert answer.status != 200 or (b"w2" in text and b"error" not in text)
            return answer.status

    return await asyncio.gather(*(ask() for _ in range(count)))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refused_connection_goes_to_the_other_replica(make_house: MakeHouse, stream: bool) -> None:
    house = await make_house(replicas=1, max_running=2)
    await house.replica("0-first-in-order", f"http://127.0.0.1:{free_port('127.0.0.1')}")
    assert await asked_through(house, stream) == [200] * 6
    await house.quiet()
    assert [r.status for r in await house.ledger(6)] == [200] * 6


@pytest.mark.parametrize("odd", [TOO_BUSY, OTHER_KEY, EMPTY_STREAM, NO_EVENT], ids=["503", "401", "empty", "cut"])
async def test_a_failing_replica_is_left_for_the_other(make_house: MakeHouse, odd: OddEngine) -> None:
    house = await make_house(replicas=1, max_running=2)
    async with served(odd) as url:
        await house.replica("0-first-in-order", url)
        assert await asked_through(house, stream=True) == [200] * 6
        assert odd.bodies
        await house.quiet()


async def test_a_retry_waits_for_the_good_replica_rather_than_fail(make_house: MakeHouse) -> None:
    house = await make_house(replicas=1, max_running=1)
    busy = asyncio.create_task(house.ask(x_script={"ttft_ms": 600}))
    await eventually(lambda: len(house.dispatcher()._queue.leases()) == 1)
    await house.replica("bad", f"http://127.0.0.1:{free_port('127.0.0.1')}")
    assert (await house.ask())[0] == 200
    assert (await busy)[0] == 200
    await house.quiet()


async def test_an_only_replica_is_tried_again(make_house: MakeHouse) -> None:
    house = await make_house(replicas=0)
    async with served(OddEngine(status=500)) as url:
        await house.replica("a", url)
        async with house.session() as http, http.post(CHAT, json=chat()) as answer:
            error = orjson.loads(await answer.read())["error"]
            assert (answer.status, error["code"], error["type"]) == (502, "replica_failed", "server_error")
            assert int(answer.headers["retry-after"]) >= 1
        with pytest.raises(openai.InternalServerError):
            await house.openai().chat.completions.create(model="m", messages=chat()["messages"])
        await house.quiet()


@pytest.mark.parametrize("stream", [False, True])
async def test_when_all_fail_the_client_is_told(make_house: MakeHouse, stream: bool) -> None:
    house = await make_house(replicas=2, gateway={"max_attempts": 2})
    body = chat(stream=stream, x_script={"fail_status": 500})
    async with house.session() as http, http.post(CHAT, json=body) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (502, "replica_failed")
    await house.quiet()
    assert [(r.status, r.output_tokens) for r in await house.ledger(1)] == [(502, 0)]


async def test_an_engine_that_dies_in_a_whole_answer_is_replaced(make_house: MakeHouse, engines: list[Engine]) -> None:
    house = await make_house(replicas=0)
    with scripted_engine() as mortal:
        await house.replica("mortal", mortal.url)
        task = asyncio.create_task(house.ask(max_tokens=5, x_script={"itl_ms": 100}))
        await asyncio.sleep(0.2)
        mortal.process.kill()
        await house.replica("b", engines[1].url)
        status, body = await task
    assert status == 200 and body["usage"]["completion_tokens"] == 5
    await house.quiet()
    assert len(await house.ledger(1)) == 1


async def test_dying_mid_stream_ends_the_stream_with_an_error(make_house: MakeHouse) -> None:
    house = await make_house(replicas=0, gateway={"max_continuations": 0})
    with scripted_engine("--itl-ms", "20") as mortal:
        await house.replica("mortal", mortal.url)
        body = chat(stream=True, x_script={"die_after_tokens": 3})
        async with house.session() as http, http.post(CHAT, json=body) as answer:
            events = (await answer.read()).split(b"\n\n")
    assert events[-1] == b""
    error = orjson.loads(events[-2].removeprefix(b"data: "))["error"]
    assert error["code"] == "replica_failed" and error.keys() == {"message", "type", "param", "code"}
    assert b" w2" in events[-3] and all(event.startswith(b"data: {") for event in events[:-1])
    await house.quiet()
    [row] = await house.ledger(1)
    assert row.status == 502 and 3 <= row.output_tokens <= 4


async def test_the_official_client_notices_a_stream_that_broke(make_house: MakeHouse) -> None:
    house = await make_house(replicas=0, gateway={"max_continuations": 0})
    with scripted_engine("--itl-ms", "20") as mortal:
        await house.replica("mortal", mortal.url)
        stream = await house.openai().chat.completions.create(
            model="m", messages=chat()["messages"], stream=True, extra_body={"x_script": {"die_after_tokens": 2}}
        )
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass


async def test_a_hung_replica_that_is_gone_lets_a_waiting_client_move_on(
    make_house: MakeHouse, engines: list[Engine]
) -> None:
    house = await make_house(replicas=0)
    async with served(OddEngine(hold=True)) as url:
        await house.replica("hung", url)
        task = asyncio.create_task(house.ask())
        await eventually(lambda: len(house.dispatcher()._queue.leases()) == 1)
        await house.replica("b", engines[1].url)
        await house.gone("hung")
        assert (await task)[0] == 200
        await house.quiet()


async def test_a_hung_replica_that_is_gone_ends_its_streams(make_house: MakeHouse) -> None:
    house = await make_house(replicas=1, gateway={"max_continuations": 0})
    body = chat(stream=True, x_script={"hang_after_tokens": 2})
    async with house.session() as http, http.post(CHAT, json=body) as answer:
        assert b"w0" in await answer.content.readany()
        await house.gone("a")
        async with asyncio.timeout(3):
            text = await answer.content.read()
    assert b"replica_failed" in text.split(b"\n\n")[-2]
    await house.quiet()


async def test_a_silent_replica_counts_as_gone(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_apps.replica_book.SILENCE_S", 0.5)
    house = await make_house(replicas=1)
    task = asyncio.create_task(house.ask(x_script={"hang_after_tokens": 0}))
    await eventually(lambda: len(house.dispatcher()._queue.leases()) == 1)
    house.silence("a")
    await eventually(lambda: len(house.dispatcher()._queue._waiting) == 1)  # its retry waits for another replica
    assert (await house.state())["replicas"] == []
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await house.quiet()


async def test_a_hung_engine_is_given_up_after_the_idle_timeout(make_house: MakeHouse, engines: list[Engine]) -> None:
    house = await make_house(replicas=0, gateway={"upstream_idle_timeout_s": 0.5})
    async with served(OddEngine(hold=True)) as url:
        await house.replica("0-hung", url)
        task = asyncio.create_task(house.ask())
        await eventually(lambda: len(house.dispatcher()._queue.leases()) == 1)
        await house.replica("b", engines[1].url)
        assert (await task)[0] == 200
        await house.quiet()


async def test_a_retry_has_its_full_patience_again(make_house: MakeHouse, engines: list[Engine]) -> None:
    house = await make_house(replicas=0, scheduling={"classes": {"online": {"max_wait_s": 1}}})
    async with served(OddEngine(hold=True)) as url:
        await house.replica("hung", url)
        task = asyncio.create_task(house.ask())
        await eventually(lambda: len(house.dispatcher()._queue.leases()) == 1)
        await asyncio.sleep(1.1)  # it runs longer than it was allowed to wait
        await house.gone("hung")
        await asyncio.sleep(0.5)
        await house.replica("b", engines[1].url)
        assert (await task)[0] == 200


async def test_nobody_is_sent_to_a_replica_that_takes_no_connection(
    make_house: MakeHouse, engines: list[Engine]
) -> None:
    house = await make_house(replicas=0)
    await house.replica("dead", f"http://127.0.0.1:{free_port('127.0.0.1')}")
    house.silence("dead")  # its actor has not noticed yet
    tasks = [asyncio.create_task(house.ask()) for _ in range(5)]
    await eventually(lambda: len(house.dispatcher()._queue._waiting) == 5)
    await house.replica("b", engines[1].url)
    assert [status for status, _ in await asyncio.gather(*tasks)] == [200] * 5
    await house.quiet()

"""Clients that leave: queued, before the first token, mid-stream. Nothing of them stays behind but the bill."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from cluster.state import UsageRecord
from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.harness import CHAT, House, chat
from tests.unit.serve_apps.servers import Engine, eventually
from tests.unit.serve_apps.test_queueing import free, occupy, waiting_now


async def aborted(engine: Engine, before: dict[str, int], count: int = 1) -> None:
    async def noticed() -> bool:
        stats = await engine.stats()
        return stats["aborted"] == before["aborted"] + count and stats["running"] == 0

    await eventually(noticed)


async def test_leaving_while_queued_withdraws_the_ticket(make_house: MakeHouse, engines: list[Engine]) -> None:
    house = await make_house(max_running=1)
    blocker = await occupy(house)
    started = (await engines[0].stats())["started"]
    waiting = [asyncio.create_task(house.ask()) for _ in range(3)]
    await eventually(lambda: waiting_now(house) == 3)
    await free(waiting[:2])
    await eventually(lambda: waiting_now(house) == 1)
    await free(blocker)
    assert (await waiting[2])[0] == 200
    await house.quiet()
    assert (await engines[0].stats())["started"] == started + 1  # no engine saw those who left
    assert sorted(r.status for r in await house.ledger(2)) == [200, 499]
    assert [r.status for r in house.sink.records].count(499) == 3


async def test_leaving_mid_stream(house: House, engines: list[Engine]) -> None:
    before = await engines[0].stats()
    body = chat(stream=True, x_script={"itl_ms": 30, "tokens": 1000})
    async with house.session() as http, http.post(CHAT, json=body) as answer:
        async for chunk in answer.content.iter_any():
            if b" w5" in chunk:
                break
    await aborted(engines[0], before)
    await house.quiet()
    [row] = await house.ledger(1)
    assert row.status == 499 and 6 <= row.output_tokens <= 30 and row.prompt_tokens > 0 and row.ttft_s is not None


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_before_the_first_token(house: House, engines: list[Engine], stream: bool) -> None:
    before = await engines[0].stats()
    task = asyncio.create_task(house.ask(stream=stream, x_script={"hang_after_tokens": 0}))
    await eventually(lambda: len(house.dispatcher()._queue.leases()) == 1)
    await asyncio.sleep(0.1)
    await free([task])
    await aborted(engines[0], before)
    await house.quiet()
    [row] = await house.ledger(1)
    assert (row.status, row.deployment, row.output_tokens) == (499, "d", 0)


async def test_leaving_in_the_middle_of_the_body(house: House) -> None:
    host, port = house.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    key = house.keys["default"]
    writer.write(
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: 500\r\n\r\n{{".encode()
    )
    await writer.drain()
    writer.close()
    assert (await house.ask())[0] == 200
    await house.quiet()
    assert len(house.sink.records) == 1


async def test_a_hundred_who_leave_at_once(make_house: MakeHouse, engines: list[Engine]) -> None:
    house = await make_house(max_running=20)
    tasks = [asyncio.create_task(house.ask(stream=True, x_script={"itl_ms": 50, "tokens": 1000})) for _ in range(100)]
    await eventually(lambda: len(house.dispatcher()._queue.leases()) == 20 and waiting_now(house) == 80)
    await free(tasks)
    await house.quiet()
    assert (await house.ask())[0] == 200
    await eventually(lambda: len(house.sink.records) == 101)


class Cancelling:
    """What Ray Serve does when its client leaves: it cancels the task that runs the ASGI app."""

    def __init__(self, house: House, body: bytes) -> None:
        self.sent: list[Any] = []
        self.body = body
        headers = [(b"authorization", f"Bearer {house.keys['default']}".encode())]
        scope = {"type": "http", "path": CHAT, "method": "POST", "headers": headers}
        self.task = asyncio.create_task(house.gateway(scope, self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        if self.body:
            body, self.body = self.body, b""
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Any) -> None:
        self.sent.append(message)


async def test_a_cancelled_request_is_billed_and_freed_too(house: House, engines: list[Engine]) -> None:
    before = await engines[0].stats()
    body = (
        b'{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}],"x_script":{"itl_ms":20,"tokens":999}}'
    )
    request = Cancelling(house, body)
    await eventually(lambda: len(request.sent) > 5)
    request.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request.task
    await aborted(engines[0], before)
    await house.quiet()
    rows: list[UsageRecord] = await house.ledger(1)
    assert [r.status for r in rows] == [499] and rows[0].output_tokens >= 4
    assert len(house.sink.records) == 1


async def test_a_client_that_takes_nothing_has_left(make_house: MakeHouse, engines: list[Engine]) -> None:
    """Its slot is needed; a server whose buffers are full waits in `send` for as long as the connection lasts."""
    house = await make_house(gateway={"client_timeout_s": 0.2})
    before = await engines[0].stats()
    body = orjson.dumps(chat(stream=True, max_tokens=1000, x_script={"itl_ms": 10, "tokens": 1000}))
    incoming = [{"type": "http.request", "body": body}]
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop() if incoming else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)
        await (asyncio.Event().wait() if len(sent) > 40 else asyncio.sleep(0.02))  # slow, but it takes them

    headers = [(b"authorization", f"Bearer {house.keys['default']}".encode())]
    scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": headers}
    async with asyncio.timeout(10):
        await house.gateway(scope, receive, send)
    assert len(sent) == 41
    await aborted(engines[0], before)
    await house.quiet()
    assert [r.status for r in await house.ledger(1)] == [499]

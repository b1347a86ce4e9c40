"""The load generator against small servers: what it counts, when it asks, what it takes for whole."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest
import uvloop

from benchmarks.gateway_sides.closed_loop import closed
from benchmarks.gateway_sides.load import Door
from benchmarks.gateway_sides.open_loop import arrivals, opened

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%sTransfer-Encoding: chunked\r\n\r\n"
EVENTS = [b'data: {"delta":{"content":" w%d"}}\n\n' % n for n in range(20)] + [b"data: [DONE]\n\n"]
Handler = Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def stream(writer: asyncio.StreamWriter, request: bytes, *, pause_s: float = 0.0, more: bytes = b"") -> None:
    """The scripted engine's answer; a pause before the second token."""
    writer.write(HEAD % more + chunk(EVENTS[0]))
    if pause_s:
        await writer.drain()
        await asyncio.sleep(pause_s)
    writer.write(b"".join(chunk(event) for event in EVENTS[1:]) + b"0\r\n\r\n")


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Door]:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(int(x.split(b":")[1]) for x in head.lower().split(b"\r\n") if b"content-length" in x)
                await handler(writer, head + await reader.readexactly(length))
                await writer.drain()
                if writer.is_closing():
                    break
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield Door(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", ("key-a", "key-b"), "m")
    finally:
        server.close()


async def test_a_closed_loop_asks_again_until_it_has_enough() -> None:
    at_once, most_at_once = 0, 0

    async def handler(writer: asyncio.StreamWriter, request: bytes) -> None:
        nonlocal at_once, most_at_once
        at_once += 1
        most_at_once = max(most_at_once, at_once)
        await asyncio.sleep(0.005)
        at_once -= 1
        await stream(writer, request)

    async with serving(handler) as door:
        outcome = await closed(door, "hello", 4, seconds=10.0, most=30)
    assert len(outcome.answers) == 30
    assert all(answer.ok for answer in outcome.answers)
    assert most_at_once == 4
    assert outcome.seconds < 5


async def test_a_closed_loop_ends_with_its_time_and_waits_for_what_is_on_its_way() -> None:
    async def handler(writer: asyncio.StreamWriter, request: bytes) -> None:
        await asyncio.sleep(0.15)
        await stream(writer, request)

    async with serving(handler) as door:
        outcome = await closed(door, "hello", 2, seconds=0.2)
    assert len(outcome.answers) == 4
    assert all(answer.ok for answer in outcome.answers)
    assert 0.28 < outcome.seconds < 1.0


async def test_the_first_token_and_the_whole_are_timed_apart() -> None:
    async def handler(writer: asyncio.StreamWriter, request: bytes) -> None:
        await stream(writer, request, pause_s=0.1, more=b"X-Tribes-Queue-Ms: 12.5\r\n")

    async with serving(handler) as door:
        outcome = await closed(door, "hello", 1, seconds=5.0, most=1)
    (answer,) = outcome.answers
    assert answer.first_s < 0.08 < answer.total_s


async def test_what_the_door_says_of_its_queue_is_read() -> None:
    async def handler(writer: asyncio.StreamWriter, request: bytes) -> None:
        await stream(writer, request, more=b"x-tribes-queue-ms: 12.5\r\n")

    async with serving(handler) as door:
        outcome = await closed(door, "hello", 1, seconds=5.0, most=1)
    assert outcome.answers[0].queue_s == pytest.approx(0.0125)


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno",
        HEAD % b"" + chunk(EVENTS[0]) + b"0\r\n\r\n",
        HEAD.replace(b"200", b"429") % b"" + b"".join(map(chunk, EVENTS)) + b"0\r\n\r\n",
    ],
    ids=["an error", "a stream that stops short", "another status"],
)
async def test_what_is_no_whole_answer_is_not_ok(reply: bytes) -> None:
    async def handler(writer: asyncio.StreamWriter, request: bytes) -> None:
        writer.write(reply)

    async with serving(handler) as door:
        outcome = await closed(door, "hello", 1, seconds=5.0, most=3)
    assert [answer.ok for answer in outcome.answers] == [False] * 3


async def test_a_connection_that_breaks_counts_as_failed_and_is_replaced() -> None:
    asked = 0

    async def handler(writer: asyncio.StreamWriter, request: bytes) -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            writer.close()
        else:
            await stream(writer, request)

    async with serving(handler) as door:
        outcome = await closed(door, "hello", 1, seconds=5.0, most=4)
    assert [answer.ok for answer in outcome.answers] == [True, False, True, True]


async def test_tenants_take_turns() -> None:
    keys: set[bytes] = set()

    async def handler(writer: asyncio.StreamWriter, request: bytes) -> None:
        keys.add(request.split(b"Bearer ")[1].split(b"\r")[0])
        await stream(writer, request)

    async with serving(handler) as door:
        await closed(door, "hello", 2, seconds=5.0, most=8)
    assert keys == {b"key-a", b"key-b"}


async def test_tokens_are_counted_while_the_load_runs() -> None:
    async with serving(stream) as door:
        outcome = await closed(door, "hello", 1, seconds=5.0, most=3, count_tokens=True)
    assert outcome.tokens == 60


async def test_an_open_loop_sends_everything_at_its_time_even_when_the_door_is_slow() -> None:
    async def handler(writer: asyncio.StreamWriter, request: bytes) -> None:
        await asyncio.sleep(0.3)
        await stream(writer, request)

    async with serving(handler) as door:
        started_s = time.perf_counter()
        outcome = await opened(door, "hello", 200, 0.5, "seed")
        elapsed_s = time.perf_counter() - started_s
    due = arrivals(200, 0.5, "seed")
    assert len(outcome.answers) == len(due)
    assert all(answer.ok for answer in outcome.answers)
    # Far more than the connections that are there at first: the rest had to be opened, and nobody waited for another.
    assert elapsed_s < 2.0
    assert min(answer.total_s for answer in outcome.answers) >= 0.29


def test_arrivals_follow_from_the_seed_and_have_the_rate() -> None:
    due = arrivals(300, 20, "a")
    assert due == arrivals(300, 20, "a") != arrivals(300, 20, "b")
    assert due == sorted(due)
    assert len(due) == pytest.approx(6000, rel=0.1)


def test_it_runs_on_uvloop() -> None:
    """As benchmarks run it; pytest's own loop is asyncio's."""

    async def run() -> int:
        async with serving(partial(stream, pause_s=0.01)) as door:
            outcomes = [await closed(door, "hello", 2, seconds=5.0, most=6), await opened(door, "hello", 100, 0.2, "a")]
        return sum(answer.ok for outcome in outcomes for answer in outcome.answers)

    assert uvloop.run(run()) == 6 + len(arrivals(100, 0.2, "a"))

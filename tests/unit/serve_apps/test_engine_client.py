"""What the gateway's client makes of an engine server's answer, against servers whose every byte is scripted."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_apps.gateway.engine_client import EngineConnectionError
from serve_apps.gateway.engine_client.connection import Connection
from tests.unit.serve_apps.raw_server import CHUNKED, END, OK, Peer, ask, chunk, serving, whole


async def test_the_request_and_the_answer() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.request())
        await peer.say(whole(b'{"a":1}', b"Content-Type: application/json", b"X-One: 1"))
        await peer.closed()

    async with (
        serving(script) as (server, engine_client),
        engine_client.post(server.url + "/base/", "/v1/x", "the-key", b'{"q":1}') as answer,
    ):
        assert (answer.status, answer.content_type, answer.headers["x-one"]) == (200, "application/json", "1")
        assert await answer.content.read() == b'{"a":1}'
    head, body = seen[0]
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /base/v1/x HTTP/1.1" and body == b'{"q":1}'
    assert {"Authorization: Bearer the-key", "Content-Type: application/json"} <= set(lines)
    assert f"Host: {server.url.removeprefix('http://')}" in lines


async def test_connections_are_used_again() -> None:
    async def script(peer: Peer) -> None:
        while True:
            _, body = await peer.request()
            await peer.say(CHUNKED, chunk(body), END)

    async with serving(script) as (server, engine_client):
        for number in range(5):
            assert await ask(server, engine_client, b"%d" % number) == b"%d" % number
        assert server.connections == 1
        answers = await asyncio.gather(*(ask(server, engine_client, b"%d" % n) for n in range(4)))
        assert answers == [b"0", b"1", b"2", b"3"] and server.connections == 4
        await asyncio.gather(*(ask(server, engine_client) for _ in range(4)))
        assert server.connections == 4


async def test_a_stream_comes_as_it_is_sent() -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED, chunk(b"one "))
        await go_on.wait()
        await peer.say(chunk(b"two "), chunk(b"three"), END)
        await peer.closed()

    async with serving(script) as (server, engine_client), engine_client.post(server.url, "/", "k", b"{}") as answer:
        assert answer.content_type == "text/event-stream"
        pieces = answer.content.iter_any()
        assert await anext(pieces) == b"one "
        go_on.set()
        assert b"".join([piece async for piece in pieces]) == b"two three"


async def test_what_came_since_the_last_look_is_one_piece() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED + chunk(b"a") + chunk(b"b") + chunk(b"c") + END)
        await peer.closed()

    async with serving(script) as (server, engine_client), engine_client.post(server.url, "/", "k", b"{}") as answer:
        await asyncio.sleep(0.05)
        assert [piece async for piece in answer.iter_any()] == [b"abc"]


async def test_leaving_before_the_end_closes_the_connection() -> None:
    closed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED, chunk(b"a"))
        await peer.closed()
        closed.set()

    async with serving(script) as (server, engine_client):
        with pytest.raises(KeyError):
            async with engine_client.post(server.url, "/", "k", b"{}"):
                raise KeyError
        await closed.wait()


async def test_cancelling_while_nothing_has_come_closes_the_connection() -> None:
    asked, closed = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.closed()
        closed.set()

    async with serving(script) as (server, engine_client):
        asking = asyncio.create_task(ask(server, engine_client))
        await asked.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await closed.wait()


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200",
        OK + b"Content-Length: 10\r\n\r\nhalf",
        CHUNKED + chunk(b"a"),
        CHUNKED + b"5\r\nab",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        CHUNKED + b"zz\r\nab\r\n",
    ],
)
async def test_an_answer_that_breaks_off_or_is_none(said: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(said)

    async with serving(script) as (server, engine_client):
        with pytest.raises(EngineConnectionError):
            await ask(server, engine_client)


@pytest.mark.parametrize(
    ("said", "status", "body"),
    [
        (OK + b"Connection: close\r\n\r\nuntil the end", 200, b"until the end"),
        (b"HTTP/1.0 200 OK\r\n\r\nold", 200, b"old"),
        (whole(b"x", b"Connection: close"), 200, b"x"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + whole(b"after"), 200, b"after"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", 500, b""),
    ],
)
async def test_shapes_of_answers(said: bytes, status: int, body: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(said)

    async with serving(script) as (server, engine_client):
        for _ in range(2):  # whatever became of the first connection
            async with engine_client.post(server.url, "/", "k", b"{}") as answer:
                assert answer.status == status
                assert await answer.read() == body


class Pipe(asyncio.Transport):
    """A transport that takes everything."""

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        pass


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.lists(st.integers(0, 400), max_size=12),
    st.booleans(),
)
def test_however_the_bytes_are_cut(pieces: list[bytes], cuts: list[int], length: bool) -> None:
    """The same answer, twice over one connection."""
    body = b"".join(pieces)
    said = whole(body) if length else CHUNKED + b"".join(chunk(piece) for piece in pieces) + END
    at = sorted({min(cut, len(said)) for cut in cuts} | {0, len(said)})

    async def run() -> None:
        connection = Connection(5.0, lambda _: None)
        connection.connection_made(Pipe())
        for _ in range(2):
            connection.ask(b"")
            for start, end in itertools.pairwise(at):
                connection.data_received(said[start:end])
            await connection.head()
            got = b""
            while data := await connection.more():
                got += data
            assert got == body and connection.status == 200 and connection.reusable
            connection.rest()
            assert connection.silent

    asyncio.run(run())

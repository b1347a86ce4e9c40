"""The gateway's connections to engine servers, against servers whose every byte is scripted."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.engines import free_port
from serve_apps.gateway.engine_client import EngineClient, EngineConnectError, EngineConnectionError, client
from serve_apps.gateway.engine_client.client import origin_of
from serve_apps.gateway.engine_client.connection import MOST_UNTAKEN_BYTES, Connection

Script = Callable[["Peer"], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Content-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def whole(body: bytes, *headers: bytes) -> bytes:
    return OK + b"".join(h + b"\r\n" for h in headers) + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader, self.writer, self.number = reader, writer, number

    async def request(self) -> tuple[bytes, bytes]:
        """Head and body of the next one."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head, await self.reader.readexactly(length)

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def closed(self) -> None:
        """Until the other end has closed."""
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass


class Server:
    """Runs `script` on each connection; what goes wrong there fails the test."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.connections = 0
        self.errors: list[BaseException] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._script(Peer(reader, writer, self.connections))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client is done
        except BaseException as error:
            self.errors.append(error)
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def serving(script: Script, idle_timeout_s: float = 5.0) -> AsyncIterator[tuple[Server, EngineClient]]:
    server = Server(script)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with EngineClient(2.0, idle_timeout_s) as engine_client, asyncio.timeout(20):
        yield server, engine_client
    listening.close()
    assert server.errors == []


async def ask(server: Server, engine_client: EngineClient, body: bytes = b"{}") -> bytes:
    async with engine_client.post(server.url, "/v1/x", "key", body) as answer:
        return await answer.read()


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


async def test_a_kept_connection_that_the_engine_has_closed_is_not_used() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(whole(b"%d" % peer.number))

    async with serving(script) as (server, engine_client):
        assert await ask(server, engine_client) == b"1"
        await asyncio.sleep(0.05)
        assert await ask(server, engine_client) == b"2"


async def test_a_kept_connection_that_closes_as_it_is_used_is_replaced_once() -> None:
    requests = 0

    async def script(peer: Peer) -> None:
        nonlocal requests
        await peer.request()
        requests += 1
        if peer.number == 1:
            await peer.say(whole(b"first"))
            await peer.request()
            requests += 1
            return  # closes without a word
        await peer.say(whole(b"second"))
        await peer.closed()

    async with serving(script) as (server, engine_client):
        assert await ask(server, engine_client) == b"first"
        assert await ask(server, engine_client) == b"second"
    assert requests == 3


async def test_a_new_connection_that_closes_without_a_word_is_a_failure() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()

    async with serving(script) as (server, engine_client):
        with pytest.raises(EngineConnectionError, match="closed the connection"):
            await ask(server, engine_client)
        assert server.connections == 1


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


async def test_nobody_listens() -> None:
    async with EngineClient(2.0, 5.0) as engine_client:
        with pytest.raises(EngineConnectError):
            async with engine_client.post(f"http://127.0.0.1:{free_port('127.0.0.1')}", "/", "k", b"{}"):
                pass


@pytest.mark.parametrize("begins", [b"", CHUNKED + chunk(b"a")])
async def test_an_engine_that_falls_silent(begins: bytes) -> None:
    closed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(begins)
        await peer.closed()
        closed.set()

    async with serving(script, idle_timeout_s=0.2) as (server, engine_client):
        with pytest.raises(TimeoutError, match=r"0\.2 s"):
            await ask(server, engine_client)
        await closed.wait()


async def test_a_slow_taker_is_not_the_engines_silence() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED, chunk(b"a"))
        await peer.reader.read(1)  # until the test is over

    async with (
        serving(script, idle_timeout_s=0.2) as (server, engine_client),
        engine_client.post(server.url, "/", "k", b"{}") as answer,
    ):
        pieces = answer.iter_any()
        assert await anext(pieces) == b"a"
        await asyncio.sleep(0.5)
        with pytest.raises(TimeoutError):
            await anext(pieces)


async def test_a_slow_taker_does_not_fill_the_memory() -> None:
    piece, pieces = b"x" * 65536, 400
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.say(CHUNKED)
        for _ in range(pieces):
            await peer.say(chunk(piece))
            sent += len(piece)
        await peer.say(END)
        await peer.request()  # the connection is read again
        await peer.say(whole(b"once more"))
        await peer.closed()

    async with serving(script) as (server, engine_client):
        async with engine_client.post(server.url, "/", "k", b"{}") as answer:
            await asyncio.sleep(0.3)
            # Beside what lies here, the kernel's buffers on both sides.
            assert sent < MOST_UNTAKEN_BYTES + 16 * 1024 * 1024 < pieces * len(piece)
            assert sum([len(data) async for data in answer.iter_any()]) == pieces * len(piece)
        assert await ask(server, engine_client) == b"once more" and server.connections == 1


async def test_a_word_nobody_asked_for_ends_a_kept_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(whole(b"%d" % peer.number))
        await asyncio.sleep(0.05)
        await peer.say(whole(b"this is for nobody"))
        await peer.closed()

    async with serving(script) as (server, engine_client):
        assert await ask(server, engine_client) == b"1"
        await asyncio.sleep(0.2)
        assert await ask(server, engine_client) == b"2"


async def test_closing_fails_what_is_under_way() -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.closed()

    async with serving(script) as (server, engine_client):
        asking = asyncio.create_task(ask(server, engine_client))
        await asked.wait()
        await engine_client.close()
        with pytest.raises(EngineConnectionError, match="closed here"):
            await asking


async def test_connections_that_nobody_uses_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "KEPT_S", 0.05)
    monkeypatch.setattr(client, "SWEEP_S", 0.05)
    closed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(whole(b"x"))
        await peer.closed()
        closed.set()

    async with serving(script) as (server, engine_client):
        await ask(server, engine_client)
        await closed.wait()


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "127.0.0.1:80", "http://", ""])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        origin_of(url)


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

"""The lives of connections to engine servers: kept, replaced, silent, slow, closed."""

from __future__ import annotations

import asyncio

import pytest

from cluster.engines import free_port
from serve_apps.gateway.engine_client import EngineClient, EngineConnectError, EngineConnectionError, client
from serve_apps.gateway.engine_client.client import origin_of
from serve_apps.gateway.engine_client.connection import MOST_UNTAKEN_BYTES
from tests.unit.serve_apps.raw_server import CHUNKED, END, Peer, ask, chunk, serving, whole


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

"""What a client gets in one piece: all that one turn of the gateway's event loop has to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import uvicorn

from serve_apps.gateway import corked
from tests.unit.serve_apps.servers import served

PIECES = [b"one ", b"two ", b"three"]


async def _in_one_turn(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"b")]})
    for piece in PIECES:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _in_turns(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for piece in PIECES:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        await asyncio.sleep(0.02)
    await send({"type": "http.response.body", "body": b""})


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
    elif scope["path"] == "/large":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(200):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    else:
        await (_in_one_turn if scope["path"] == "/one" else _in_turns)(send)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with served(app) as url:
        yield int(url.rpartition(":")[2])


async def _packets(port: int, path: str) -> list[bytes]:
    """What each read brings of the answer to a request that asks for the connection's end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    packets = []
    async with asyncio.timeout(10):
        while data := await reader.read(1 << 20):
            packets.append(data)
    writer.close()
    return packets


async def test_one_turn_is_one_write(port: int) -> None:
    [packet] = await _packets(port, "/one")
    assert packet.startswith(b"HTTP/1.1 200 OK\r\n") and b"x-a: b\r\n" in packet
    assert packet.endswith(b"4\r\none \r\n4\r\ntwo \r\n5\r\nthree\r\n0\r\n\r\n")


async def test_each_turn_is_sent_at_its_end(port: int) -> None:
    packets = await _packets(port, "/turns")
    assert [packet.count(b"\r\n4\r\n") for packet in packets][:1] == [1]  # the head with the first piece
    assert len(packets) == 4 and packets[-1] == b"0\r\n\r\n"


async def test_kept_connections_and_large_answers(port: int) -> None:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        for path, size in (("/one", 13), ("/large", 20_000_000), ("/turns", 13)):
            async with http.get(path) as answer:
                assert len(await answer.read()) == size


def test_servers_that_choose_by_themselves_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when uvicorn moves its table, or Ray Serve names a protocol."""
    monkeypatch.setattr(uvicorn.config, "HTTP_PROTOCOLS", dict(uvicorn.config.HTTP_PROTOCOLS))
    corked.for_all_servers()
    config = uvicorn.Config(lambda: app, factory=True, lifespan="off", log_level=None, log_config=None)
    config.load()
    assert config.http_protocol_class is corked.CorkedProtocol

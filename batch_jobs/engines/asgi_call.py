"""One request to an ASGI app in this process: no socket, no HTTP client.

Role: the caller's half of the ASGI protocol for JSON in, JSON out. Must not know: which app it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from batch_jobs.engines.base import Ask, Reply

App = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[MutableMapping[str, Any]]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]
_HEADERS = [(b"host", b"engine"), (b"content-type", b"application/json")]


class _Exchange:
    """The messages of one request."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._gone = asyncio.Event()
        self.status = 500
        self.received = bytearray()

    async def receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()  # an app listens here for the client's departure
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.received += message.get("body", b"")

    def leave(self) -> None:
        self._gone.set()


async def call(app: App, ask: Ask) -> Reply:
    """POST. When this task is cancelled the app sees its client leave, and has ended its work when this returns."""
    body = orjson.dumps(ask.body)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": ask.path,
        "raw_path": ask.path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [*_HEADERS, (b"content-length", str(len(body)).encode())],
        "client": None,
        "server": ("engine", 80),
    }
    exchange = _Exchange(body)
    task = asyncio.ensure_future(app(scope, exchange.receive, exchange.send))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        exchange.leave()
        await asyncio.wait([task])
        raise
    return Reply(exchange.status, _decoded(bytes(exchange.received)))


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = {"error": {"message": body[:1000].decode(errors="replace") or "empty reply", "type": "invalid_reply"}}
    return value if isinstance(value, dict) else {"data": value}

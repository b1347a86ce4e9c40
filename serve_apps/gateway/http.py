"""The little of HTTP that a bare ASGI app needs. Owns: reading bodies, sending answers, noticing a client that left.

Must not know: OpenAI, leases.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from serve_apps.gateway.error_shapes import as_answer
from serve_apps.gateway.errors import ApiError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON_HEADERS: Headers = [(b"content-type", b"application/json")]
MAX_DISCARDED_BYTES = 256 * 1024 * 1024
WATCHED_AFTER_S = 0.05


class ClientGoneError(Exception):
    """The client closed the connection."""


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """The headers by name (lower case), for whoever needs several; the first of a name counts, as in `header`."""
    return dict(reversed(scope["headers"]))


def header(scope: Scope, name: bytes) -> bytes | None:
    """First header of that name (lower case), or None."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


async def read_body(declared: bytes | None, receive: Receive, max_bytes: int) -> bytes:
    """The whole body; `declared` is its `content-length`. Raises ApiError 413 above `max_bytes`, ClientGoneError when
    it does not come to an end.
    """
    too_large = declared is not None and declared.isdigit() and int(declared) > max_bytes
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk = message.get("body", b"")
        size += len(chunk)
        too_large = too_large or size > max_bytes
        # A body that is too large is still read to its end, unstored: a client that is busy sending sees no answer.
        if too_large:
            chunks.clear()
        else:
            chunks.append(chunk)
        if not message.get("more_body") or (too_large and size > MAX_DISCARDED_BYTES):
            break
    if too_large:
        raise ApiError(413, "request_too_large", f"the request body is larger than {max_bytes} bytes")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


@contextlib.asynccontextmanager
async def cancelled_when_gone(
    receive: Receive, taken: Callable[[], int | None] = lambda: None, patience_s: float = 60.0
) -> AsyncIterator[None]:
    """Cancels the block when the client leaves; the block then ends in ClientGoneError.

    One that takes nothing for `patience_s` has left too. `taken`: how many pieces of the answer it has taken; None
    while nobody waits for it to take one.
    """
    task = asyncio.current_task()
    assert task is not None
    watch = _Watch(receive, task, taken, patience_s)
    try:
        yield
    except asyncio.CancelledError:
        if watch.gone and task.uncancel() == 0:
            raise ClientGoneError from None
        raise
    finally:
        watch.stop()


class _Watch:
    """Looks after one client. A task costs as much as relaying several tokens, and most clients are still there after a
    moment: so it begins then, and one that leaves earlier is noticed then."""

    __slots__ = ("_loop", "_patience_s", "_receive", "_taken", "_task", "_timer", "_watcher", "gone")

    def __init__(
        self, receive: Receive, task: asyncio.Task[Any], taken: Callable[[], int | None], patience_s: float
    ) -> None:
        self.gone = False
        self._receive, self._task, self._taken, self._patience_s = receive, task, taken, patience_s
        self._watcher: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(WATCHED_AFTER_S, self._begin)

    def stop(self) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _begin(self) -> None:
        self._watcher = self._loop.create_task(self._until_it_leaves())
        self._look(None)

    async def _until_it_leaves(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left()

    def _look(self, before: int | None) -> None:
        taken = self._taken()
        if taken is not None and taken == before:
            self._left()
        else:
            self._timer = self._loop.call_later(self._patience_s, self._look, taken)

    def _left(self) -> None:
        if not self.gone:
            self.gone = True
            self._task.cancel()


async def send_response(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ApiError, path: str, request_id: str = "") -> None:
    """The error in the shape that clients at `path` read."""
    headers = error.headers
    if request_id:
        headers.append((b"x-tribes-request-id", request_id.encode()))
    status, body = as_answer(error, path)
    await send_response(send, status, headers, body)

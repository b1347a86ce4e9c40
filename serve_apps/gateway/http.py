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
async def cancelled_on_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Cancels the block when the client leaves; the block then ends in ClientGoneError."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientGoneError from None
        raise
    finally:
        watcher.cancel()


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

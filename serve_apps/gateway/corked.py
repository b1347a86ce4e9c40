"""One write for all that one turn of the event loop has to say to a client: head, first events, end of an answer.

uvloop writes at once, and uvicorn writes the head and each piece of the body by themselves. Each is a
system call here, and a wake-up at the other end.

Owns: what was said since the last turn. Must not know: HTTP. Tried with uvicorn 0.54; `for_all_servers` relies on the
table from which it takes its protocols.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Corked:
    """A transport that gathers what is written until the loop's next turn; all else is the inner transport's."""

    __slots__ = ("_inner", "_loop", "_pieces")

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)

    def close(self) -> None:
        self._flush()
        self._inner.close()

    def _flush(self) -> None:
        pieces, self._pieces = self._pieces, []
        if pieces and not self._inner.is_closing():
            self._inner.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class CorkedProtocol(HttpToolsProtocol):
    """uvicorn's, before such a transport: for `uvicorn.Config(http=...)`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, Corked(transport, self.loop)))


def for_all_servers() -> None:
    """Every uvicorn server of this process that leaves the choice to uvicorn: Ray Serve's has no way to name one."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{CorkedProtocol.__name__}"

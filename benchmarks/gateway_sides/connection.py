"""One keep-alive connection of the load generator, as a raw protocol: a few microseconds a request.

It knows of HTTP/1.1 only what the doors answer: a status line, headers, and a body of a given length or in chunks. A
stream is not parsed: it has begun when the first token's text is in it, and it is whole when the last token and [DONE]
are. TCP_NODELAY is on, and data is acknowledged at once while more is expected (TCP_QUICKACK): otherwise a door that
has left Nagle's algorithm on would wait 40 ms for this end's delayed acknowledgement, which is not its own cost.

Owns: one socket, the timing of the answer on it. Must not know: loads.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from benchmarks.gateway_sides.engine import TOKENS

FIRST_TOKEN = b'" w0"'
LAST_TOKEN = b'" w%d"' % (TOKENS - 1)
TOKEN = b'" w'
DONE = b"[DONE]"
SAID_BYTES = 1000
_HEAD_END, _CHUNKS_END = b"\r\n\r\n", b"\r\n0\r\n\r\n"
_QUEUE_HEADER = b"x-tribes-queue-ms: "


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as the client saw it, in seconds since it was due. A failed one has no first token."""

    due_s: float
    first_s: float
    total_s: float
    ok: bool
    queue_s: float = 0.0
    """What the door says it waited for a slot."""
    said: bytes = b""
    """The beginning of a failed answer."""


class Connection(asyncio.Protocol):
    """Asks one thing at a time; `done` gets this connection and the answer."""

    def __init__(self, done: Callable[[Connection, Answer], None], tokens: Callable[[int], None] | None = None) -> None:
        """`tokens`: called with the number of tokens in each block of bytes, as it comes."""
        self._done = done
        self._tokens = tokens
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._data = bytearray()
        self._length: int | None = None
        self._due_s: float | None = None
        self._first_s: float | None = None
        self._sent: tuple[bytes, float] | None = None

    async def open(self, address: tuple[str, int]) -> Connection:
        """Connect; raises OSError."""
        loop = asyncio.get_running_loop()
        # A socket of our own: uvloop's stand-in makes a new socket object for each option that is set.
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await loop.sock_connect(self._socket, address)
            await loop.create_connection(lambda: self, sock=self._socket)
        except BaseException:
            self._socket.close()
            raise
        return self

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop has types of its own
        if self._sent is not None:
            self.ask(*self._sent)

    def ask(self, request: bytes, due_s: float) -> None:
        """Send a request; its answer is timed from `due_s`. Before the connection is made it waits for that."""
        self._sent = request, due_s
        if self._transport is None:
            return
        self._data.clear()
        self._length, self._first_s, self._due_s = None, None, due_s
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        if self._due_s is None:
            return  # nothing was asked: the door says why it closes
        self._data += data
        if self._tokens is not None:
            self._tokens(data.count(TOKEN))
        if self._first_s is None and FIRST_TOKEN in self._data:
            self._first_s = now_s
        if self._is_whole():
            self._finish(now_s)
        elif self._socket is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._due_s is not None:
            self._finish(time.perf_counter())

    def give_up(self) -> None:
        """Time is over: what has not come counts as failed."""
        if self._transport is not None:
            self._transport.abort()

    def _is_whole(self) -> bool:
        if self._length is None:
            head_end = self._data.find(_HEAD_END)
            if head_end < 0:
                return False
            self._length = _body_length(bytes(self._data[:head_end]).lower(), head_end + len(_HEAD_END))
        if self._length >= 0:
            return len(self._data) >= self._length
        return self._data.endswith(_CHUNKS_END)

    def _finish(self, now_s: float) -> None:
        assert self._due_s is not None
        due_s, self._due_s, self._sent = self._due_s, None, None
        data = self._data
        ok = self._first_s is not None and data.startswith(b"HTTP/1.1 200") and LAST_TOKEN in data and DONE in data
        first_s = (self._first_s or now_s) - due_s
        said = b"" if ok else bytes(data[:SAID_BYTES]) or b"(nothing)"
        self._done(self, Answer(due_s, first_s, now_s - due_s, ok, _queue_s(data), said))


def _body_length(head: bytes, body_at: int) -> int:
    """Length of the whole answer; -1 when it comes in chunks."""
    for line in head.split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return body_at + int(line.partition(b":")[2])
    return -1


def _queue_s(data: bytearray) -> float:
    at = data.find(_QUEUE_HEADER)
    if at < 0:
        return 0.0
    end = data.find(b"\r", at)
    return float(data[at + len(_QUEUE_HEADER) : end]) / 1e3

"""One connection to one engine server: bytes out, an answer in. Owns: the socket, and the answer that is coming on it.

What arrives is gathered until somebody takes it, so a chunk costs no task switch of its own. Nobody who takes nothing
makes it grow without bound: the socket is not read while much lies here.
Must not know: which connection is used for what, and for how long it is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

MOST_UNTAKEN_BYTES = 256 * 1024


class EngineConnectionError(Exception):
    """The connection failed, or what came over it was no answer."""


class EngineConnectError(EngineConnectionError):
    """The engine took no connection."""


class Connection(asyncio.Protocol):
    """Asks one thing at a time: `ask`, then `head`, then `more` until it brings nothing."""

    __slots__ = (
        "_asking",
        "_complete",
        "_failure",
        "_headed",
        "_keeps",
        "_lost",
        "_parser",
        "_paused",
        "_pieces",
        "_transport",
        "_untaken",
        "_waiter",
        "_waiting_since_s",
        "_watch",
        "headers",
        "idle_timeout_s",
        "status",
    )

    def __init__(self, idle_timeout_s: float, lost: Callable[[Connection], None]) -> None:
        """`idle_timeout_s`: for how long an answer may bring nothing. `lost`: called when the connection has ended."""
        self.idle_timeout_s = idle_timeout_s
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._waiting_since_s = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._asking = self._paused = False
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._headed = self._complete = self._keeps = False
        self._failure: Exception | None = None
        self._pieces: list[bytes] = []
        self._untaken = 0

    # --- what its user calls --------------------------------------------------------------------------------------

    @property
    def silent(self) -> bool:
        """Nothing of an answer has come."""
        return not self._headed and not self.headers and not self.status

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def reusable(self) -> bool:
        """The answer is complete, and the engine keeps the connection."""
        return self._complete and self._keeps and self._failure is None and self.is_open

    @property
    def over(self) -> bool:
        """The answer is complete, and nothing is left of it to take."""
        return self._complete and not self._pieces

    def ask(self, request: bytes) -> None:
        """Send a request."""
        self._begin()
        self._asking = True
        if self._transport is not None and self.is_open:
            self._transport.write(request)
        else:
            self._failure = EngineConnectionError("the engine has closed the connection")

    async def head(self) -> None:
        """Until `status` and `headers` are there. Raises EngineConnectionError, TimeoutError."""
        while not self._headed:
            await self._news()

    async def more(self) -> bytes:
        """What has come of the body since the last time, at least a byte; nothing when it is over.

        Raises EngineConnectionError, TimeoutError.
        """
        while not self._pieces:
            if self._complete:
                return b""
            await self._news()
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces, self._untaken = [], 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    def rest(self) -> None:
        """Nobody waits for an answer any more: what comes now is not asked for."""
        self._asking = False
        self._begin()
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once. An engine gives up the request whose connection closes."""
        self._asking = False
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(EngineConnectionError("the connection was closed here"))
        if self._transport is not None:
            self._transport.abort()

    # --- waiting --------------------------------------------------------------------------------------------------

    async def _news(self) -> None:
        if self._failure is not None:
            raise self._failure
        loop = asyncio.get_running_loop()
        self._waiting_since_s = loop.time()
        if self._watch is None:
            self._watch = loop.call_later(self.idle_timeout_s, self._look)
        self._waiter = loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _look(self) -> None:
        """One timer for all of a connection's answers: to set one for each wait would cost more than the wait."""
        self._watch = None
        if self._waiter is None:
            return  # the next one who waits sets it again
        loop = asyncio.get_running_loop()
        left_s = self._waiting_since_s + self.idle_timeout_s - loop.time()
        if left_s > 0:
            self._watch = loop.call_later(left_s, self._look)
        else:
            self._fail(TimeoutError(f"nothing came from the engine for {self.idle_timeout_s:g} s"))

    def _fail(self, failure: Exception) -> None:
        if self._failure is None:
            self._failure = failure
        if self._transport is not None:
            self._transport.abort()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._failure)

    # --- what the event loop calls --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop has types of its own

    def data_received(self, data: bytes) -> None:
        if not self._asking:
            self.abort()  # nobody has asked: an engine that says why it closes, or one that is not in step
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(EngineConnectionError(f"the engine's answer is no HTTP: {error}"))
            return
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if self._untaken > MOST_UNTAKEN_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._asking and not self._complete:
            # Without a length and chunks the end of the connection is the end of the body.
            framed = "content-length" in self.headers or "transfer-encoding" in self.headers
            if exc is None and self._headed and not framed:
                self._complete = True
                if self._waiter is not None and not self._waiter.done():
                    self._waiter.set_result(None)
            else:
                self._fail(EngineConnectionError(f"the engine closed the connection ({type(exc).__name__})"))
        self._lost(self)

    # --- what the parser calls ------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # "continue" and the like: the answer is still to come
            self.headers.clear()
            return
        self.status = status
        self._headed = True

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._untaken += len(body)

    def on_message_complete(self) -> None:
        self._complete = self._headed
        self._keeps = self._parser.should_keep_alive()  # it no longer knows afterwards

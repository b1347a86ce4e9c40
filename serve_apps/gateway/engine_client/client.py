"""Connections to engine servers, kept for the next request. Owns: which are free, and for how long they are kept.

There is no bound on how many are open at once: leases are the bound. A free one is closed by its engine, or here when
it has not been used for `KEPT_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from serve_apps.gateway.engine_client.connection import Connection, EngineConnectError
from serve_apps.gateway.engine_client.exchange import Exchange

KEPT_S = 60.0
SWEEP_S = 15.0


class Origin(NamedTuple):
    """Where an engine server listens."""

    host: str
    port: int
    prefix: str
    """Of every path."""
    authority: str
    """As the Host header has it."""


@lru_cache(maxsize=4096)
def origin_of(base_url: str) -> Origin:
    """Raises ValueError for what is no address of an engine server."""
    parts = urlsplit(base_url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"an engine server is at http://HOST:PORT, not at {base_url!r}")
    return Origin(parts.hostname, parts.port or 80, parts.path.rstrip("/"), parts.netloc)


class EngineClient:
    """Asks engine servers. Made and used inside one event loop; `close` at the end."""

    def __init__(self, connect_timeout_s: float, idle_timeout_s: float) -> None:
        """`idle_timeout_s`: for how long an answer may bring nothing, its first byte included."""
        self._connect_timeout_s = connect_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._free: dict[Origin, dict[Connection, float]] = {}
        """Connections and since when (monotonic) they are free, the longest first."""
        self._open: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None

    def post(self, base_url: str, path: str, api_key: str, body: bytes) -> Exchange:
        """JSON to `base_url + path`."""
        origin = origin_of(base_url)
        head = (
            f"POST {origin.prefix}{path} HTTP/1.1\r\nHost: {origin.authority}\r\nAuthorization: Bearer {api_key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return Exchange(self, origin, head.encode("latin-1") + body)

    async def __aenter__(self) -> EngineClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection; answers still under way fail."""
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)  # their transports close in the loop's next turn

    # --- what exchanges call --------------------------------------------------------------------------------------

    def kept(self, origin: Origin) -> Connection | None:
        """A free connection: the one used last, which is the least likely to be closed by now."""
        free = self._free.get(origin)
        return free.popitem()[0] if free else None

    async def connect(self, origin: Origin) -> Connection:
        """A new one. Raises EngineConnectError."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(self._new, origin.host, origin.port)
        except TimeoutError:
            raise EngineConnectError(f"no connection within {self._connect_timeout_s:g} s") from None
        except OSError as error:
            raise EngineConnectError(str(error)) from error
        if connection.is_open:
            self._open.add(connection)
        return connection

    def done_with(self, connection: Connection, origin: Origin) -> None:
        """Keep it if it can be used again, else close it."""
        if not connection.reusable:
            connection.abort()
            return
        connection.rest()
        self._free.setdefault(origin, {})[connection] = time.monotonic()
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(SWEEP_S, self._close_unused)

    # --------------------------------------------------------------------------------------------------------------

    def _new(self) -> Connection:
        return Connection(self._idle_timeout_s, self._lost)

    def _lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        for origin, free in self._free.items():
            if free.pop(connection, None) is not None:
                if not free:
                    del self._free[origin]
                break

    def _close_unused(self) -> None:
        self._sweep = None
        before_s = time.monotonic() - KEPT_S
        for connection in [c for free in self._free.values() for c, since_s in free.items() if since_s < before_s]:
            connection.abort()
        with contextlib.suppress(RuntimeError):  # the loop is ending
            if any(self._free.values()):
                self._sweep = asyncio.get_running_loop().call_later(SWEEP_S, self._close_unused)

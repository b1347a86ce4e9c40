"""One request to an engine and its answer. Owns: when the connection is given back, and when it is closed.

Must not know: how connections are kept.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING

from serve_apps.gateway.engine_client.connection import Connection, EngineConnectionError

if TYPE_CHECKING:
    from serve_apps.gateway.engine_client.client import EngineClient, Origin


class Exchange:
    """`async with`: inside of it the answer, whose head is there. Left before its end, the engine's work is aborted.

    Raises EngineConnectError and EngineConnectionError, and TimeoutError where nothing comes for too long.
    """

    __slots__ = ("_client", "_connection", "_origin", "_request")

    def __init__(self, client: EngineClient, origin: Origin, request: bytes) -> None:
        self._client = client
        self._origin = origin
        self._request = request
        self._connection: Connection | None = None

    async def __aenter__(self) -> Exchange:
        kept = self._client.kept(self._origin)
        if kept is not None:
            try:
                await self._ask(kept)
                return self
            except EngineConnectionError:
                # An engine closes connections that it has not used for a while, perhaps in the moment in which we
                # do. One that has not said a word has not answered: it is asked again, once, on a new connection.
                if not kept.silent:
                    raise
        await self._ask(await self._client.connect(self._origin))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection, self._connection = self._held, None
        self._client.done_with(connection, self._origin)

    async def _ask(self, connection: Connection) -> None:
        try:
            connection.ask(self._request)
            await connection.head()
        except BaseException:
            connection.abort()
            raise
        self._connection = connection

    @property
    def _held(self) -> Connection:
        assert self._connection is not None, "outside of its `async with`"
        return self._connection

    @property
    def status(self) -> int:
        return self._held.status

    @property
    def headers(self) -> dict[str, str]:
        """Names in lower case; of a name that comes more than once the last one."""
        return self._held.headers

    @property
    def content_type(self) -> str:
        """Without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def content(self) -> Exchange:
        return self

    @property
    def over(self) -> bool:
        """All of the body has come and was taken."""
        return self._held.over

    async def iter_any(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        more = self._held.more
        while data := await more():
            yield data

    async def read(self) -> bytes:
        """All of the body."""
        return b"".join([data async for data in self.iter_any()])

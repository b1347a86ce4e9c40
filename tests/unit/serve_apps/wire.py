"""A TCP line with a delay and a switch between two servers of a test. Must not know: what passes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_PIECE_BYTES = 65536


@dataclass(slots=True)
class Wire:
    """Listens at `url` before it is known where it leads (`target`, a URL)."""

    url: str = ""
    target: str = ""
    delay_s: float = 0.0
    """Of every piece, each way."""
    broken: bool = False
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    def cut(self) -> None:
        """Breaks what is open, and takes nothing new."""
        self.broken = True
        for writer in self._open:
            writer.transport.abort()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_writer = None
        self._open.add(writer)
        try:
            if self.broken or not self.target:
                return
            place = urlsplit(self.target)
            far_reader, far_writer = await asyncio.open_connection(place.hostname, place.port)
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        except OSError:
            pass
        finally:
            self._open.discard(writer)
            for end in (writer, far_writer):
                if end is not None:
                    end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_PIECE_BYTES):
            await asyncio.sleep(self.delay_s)
            writer.write(piece)
            await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()


@contextlib.asynccontextmanager
async def wire() -> AsyncIterator[Wire]:
    line = Wire()
    server = await asyncio.start_server(line.connected, "127.0.0.1", 0)
    line.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        line.cut()
        server.close()

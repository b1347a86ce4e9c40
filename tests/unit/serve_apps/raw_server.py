"""A server whose every byte is scripted, for the client that asks engines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from serve_apps.gateway.engine_client import EngineClient

Script = Callable[["Peer"], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Content-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def whole(body: bytes, *headers: bytes) -> bytes:
    return OK + b"".join(h + b"\r\n" for h in headers) + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader, self.writer, self.number = reader, writer, number

    async def request(self) -> tuple[bytes, bytes]:
        """Head and body of the next one."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head, await self.reader.readexactly(length)

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def closed(self) -> None:
        """Until the other end has closed."""
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass


class Server:
    """Runs `script` on each connection; what goes wrong there fails the test."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.connections = 0
        self.errors: list[BaseException] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._script(Peer(reader, writer, self.connections))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client is done
        except BaseException as error:
            self.errors.append(error)
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def serving(script: Script, idle_timeout_s: float = 5.0) -> AsyncIterator[tuple[Server, EngineClient]]:
    server = Server(script)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with EngineClient(2.0, idle_timeout_s) as engine_client, asyncio.timeout(20):
        yield server, engine_client
    listening.close()
    assert server.errors == []


async def ask(server: Server, engine_client: EngineClient, body: bytes = b"{}") -> bytes:
    async with engine_client.post(server.url, "/v1/x", "key", body) as answer:
        return await answer.read()

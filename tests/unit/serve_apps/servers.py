"""Servers of the tests: a scripted engine as a process, an ASGI app under uvicorn in the test's own loop.

Role: start, wait until it listens, stop. Must not know: the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import uvicorn

from cluster.engines import free_port
from serve_apps.gateway.corked import CorkedProtocol

REPO = Path(__file__).parents[3]
ENGINE_KEY = "engine-key"
PATIENCE_S = 10.0


@dataclass(slots=True)
class Engine:
    """A scripted engine process."""

    process: subprocess.Popen[bytes]
    url: str

    async def stats(self) -> dict[str, int]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/stats") as answer:
            return dict(orjson.loads(await answer.read()))


@contextlib.contextmanager
def scripted_engine(*flags: str) -> Iterator[Engine]:
    port = free_port("127.0.0.1")
    argv = [sys.executable, "-m", "tests.support.scripted_engine", "--port", str(port), "--api-key", ENGINE_KEY]
    process = subprocess.Popen([*argv, "--served-model-name", "m", *flags], cwd=REPO)
    try:
        end = time.monotonic() + 20
        while time.monotonic() < end and process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield Engine(process, f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


class Server(uvicorn.Server):
    """uvicorn as a guest in pytest's loop: signals are pytest's, and it ends when told rather than at its next tick."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.told_to_end = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.told_to_end.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """An ASGI app on a loopback port; yields its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=CorkedProtocol,
        lifespan="auto",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=1,
        ws="none",
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    await eventually(lambda: server.started or serving.done())
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.told_to_end.set()
        await serving
        listener.close()


async def eventually(condition: Callable[[], bool | Awaitable[bool]], patience_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + patience_s
    while True:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        assert time.monotonic() < end, "did not become true in time"
        await asyncio.sleep(0.02)

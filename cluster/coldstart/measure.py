"""Role: time the ways in which one engine comes up on this machine. Owns: the clock, from asking to the first token.

Uses the engine servers that replicas use, so what is measured is what they do. Must not know: Ray, configuration files.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from cluster.coldstart import sleeping
from cluster.coldstart.memory import Memory, memory_of
from cluster.coldstart.stages import split
from cluster.engines import EngineServer, LaunchSpec
from cluster.engines.guard import descendants

FIRST_TOKEN_TIMEOUT_S: Final = 120.0
PID_POLL_S: Final = 0.005
QUESTION: Final = "What is the capital of France?"


class StartError(RuntimeError):
    """An engine came up otherwise than asked, or gave no token."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start, in seconds since it was asked for."""

    first_token_s: float
    routable_s: float
    stages: dict[str, float] = field(default_factory=dict)


class _Lines(logging.Handler):
    """Keeps the engine's lines with the time they came."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[float, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((time.perf_counter(), record.getMessage()))


class MeasuredEngine:
    """An engine server whose start is timed. `stop` is due however `start` ends."""

    def __init__(self, kind: str, make_spec: Callable[[int], LaunchSpec], fork_host: Path | None = None) -> None:
        self._kind = kind
        self._lines = _Lines()
        log = logging.Logger("coldstart", logging.INFO)  # not one of the root's: nothing is shown
        log.addHandler(self._lines)
        self._forked = fork_host is not None
        self._server = EngineServer(make_spec, log, fork_host=fork_host)

    async def start(self) -> Start:
        """Up and asked once. StartError where a forked engine was asked for and came cold."""
        began = time.perf_counter()
        starting = asyncio.create_task(self._server.start())
        while self._server.pid is None and not starting.done():  # noqa: ASYNC110  # to the next 5 ms is enough
            await asyncio.sleep(PID_POLL_S)
        process_s = time.perf_counter() - began
        await starting
        routable_s = time.perf_counter() - began
        if self._server.forked != self._forked:
            said = "\n  ".join(text for _, text in self._lines.lines[-30:])
            raise StartError(f"the engine was not forked:\n  {said}")
        lines = [(at - began, text) for at, text in self._lines.lines]
        stages = split(self._kind, lines, process_s, routable_s)
        await self._ask()
        return Start(time.perf_counter() - began, routable_s, stages)

    async def again(self) -> Start:
        """A request to the engine that is up."""
        began = time.perf_counter()
        await self._ask()
        return Start(time.perf_counter() - began, 0.0)

    async def asleep(self) -> tuple[Start, Memory]:
        """Sleep, wake, ask; and what the sleeping engine held in host memory."""
        async with aiohttp.ClientSession() as session:
            await sleeping.fall_asleep(self._kind, session, self._server.base_url, self._server.api_key)
            held = self.memory()
            began = time.perf_counter()
            await sleeping.wake(self._kind, session, self._server.base_url, self._server.api_key)
            awake_s = time.perf_counter() - began
        await self._ask()
        return Start(time.perf_counter() - began, awake_s), held

    def memory(self) -> Memory:
        """Of the whole tree."""
        pid = self._server.pid
        return memory_of([pid, *descendants(pid)] if pid is not None else [])

    async def stop(self) -> None:
        await self._server.stop()

    async def _ask(self) -> None:
        """Returns with the first token."""
        headers = {"Authorization": f"Bearer {self._server.api_key}"}
        body = {
            "model": self._server.model_name,
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 8,
            "temperature": 0,
            "stream": True,
        }
        timeout = aiohttp.ClientTimeout(total=FIRST_TOKEN_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
            url = f"{self._server.base_url}/v1/chat/completions"
            async with session.post(url, json=body) as response:
                async for line in response.content:
                    if line.startswith(b"data:") and b'"content":"' in line and b'"content":""' not in line:
                        return
                raise StartError(f"no token came: status {response.status}")

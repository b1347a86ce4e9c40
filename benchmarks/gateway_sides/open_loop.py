"""Open loops: requests at random times, whether the door keeps up or not.

Owns: when requests are due, a connection for each. Must not know: what answers, which case it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence

from benchmarks.gateway_sides.connection import Answer, Connection
from benchmarks.gateway_sides.load import CLOSING_S, PATIENCE_S, Door, Outcome, undisturbed

READY_CONNECTIONS = 32
"""There before the first request; more are opened as they are needed."""
TIMER_S = 0.0005
"""Half of the resolution of the event loop's timers: who is due so soon is sent now, rather than a spin later."""


async def opened(door: Door, prompt: str, rate_per_s: float, seconds: float, seed: str) -> Outcome:
    """Requests at random times (Poisson), whether the door keeps up or not; each is timed from when it was due."""
    loop = _Open(door, door.requests(prompt), arrivals(rate_per_s, seconds, seed))
    return await loop.run()


def arrivals(rate_per_s: float, seconds: float, seed: str) -> list[float]:
    """Seconds from the start at which requests are due."""
    rng = random.Random(seed)
    due: list[float] = []
    at_s = rng.expovariate(rate_per_s)
    while at_s < seconds:
        due.append(at_s)
        at_s += rng.expovariate(rate_per_s)
    return due


class _Open:
    def __init__(self, door: Door, requests: Sequence[bytes], due: list[float]) -> None:
        self._door = door
        self._requests = requests
        self._due = due
        self._sent = 0
        self._outcome = Outcome()
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._ended = asyncio.Event()

    async def run(self) -> Outcome:
        for _ in range(READY_CONNECTIONS):
            self._idle.append(await Connection(self._answered).open(self._door.address))
        last_s = self._due[-1] if self._due else 0.0
        with undisturbed(self._outcome):
            self._started_s = time.perf_counter()
            self._send_due()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), last_s + PATIENCE_S)
            self._outcome.seconds = time.perf_counter() - self._started_s
        for connection in [*self._busy, *self._idle]:
            connection.give_up()
        await asyncio.sleep(CLOSING_S)
        return self._outcome

    def _send_due(self) -> None:
        """Send what is due, and come back when the next one is."""
        while self._sent < len(self._due):
            wait_s = self._started_s + self._due[self._sent] - time.perf_counter()
            if wait_s > TIMER_S:
                asyncio.get_running_loop().call_later(wait_s, self._send_due)
                return
            self._outcome.late_s.append(max(0.0, -wait_s))
            self._send(self._started_s + self._due[self._sent] - max(0.0, wait_s))
            self._sent += 1
        if not self._busy:
            self._ended.set()

    def _send(self, due_s: float) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                break
        else:
            connection = self._another(due_s)
        self._busy.add(connection)
        connection.ask(self._requests[self._sent % len(self._requests)], due_s)

    def _another(self, due_s: float) -> Connection:
        """It takes its request at once, and sends it when it is connected."""
        connection = Connection(self._answered)
        task = asyncio.ensure_future(connection.open(self._door.address))
        task.add_done_callback(lambda done: self._connected(connection, done, due_s))
        return connection

    def _connected(self, connection: Connection, task: asyncio.Future[Connection], due_s: float) -> None:
        if task.cancelled() or task.exception() is not None:
            took_s = time.perf_counter() - due_s
            self._answered(connection, Answer(due_s, took_s, took_s, ok=False))

    def _answered(self, connection: Connection, answer: Answer) -> None:
        self._outcome.answers.append(answer)
        self._busy.discard(connection)
        if connection.is_open:
            self._idle.append(connection)
        if not self._busy and self._sent == len(self._due):
            self._ended.set()

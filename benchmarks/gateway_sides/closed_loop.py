"""Closed loops: so many requests at any time, each followed by the next as soon as it is answered.

Callbacks instead of a task per request: what this end costs is taken from the cores that the doors share with it.
Owns: who asks next, reconnecting. Must not know: what answers, which case it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

from benchmarks.gateway_sides.connection import Answer, Connection
from benchmarks.gateway_sides.load import CLOSING_S, PATIENCE_S, Door, Outcome, undisturbed

RECONNECTS = 1000
"""A door that closes every connection is found out rather than asked for ever."""


async def closed(
    door: Door,
    prompt: str,
    concurrency: int,
    seconds: float,
    most: int | None = None,
    *,
    count_tokens: bool = False,
    spread_s: float = 0.0,
) -> Outcome:
    """`concurrency` at any time, each asking again as soon as it is answered, for `seconds` or `most` answers.

    `spread_s`: they begin one after the other over this time, so that requests of one length do not end together."""
    loop = _Closed(door.requests(prompt), seconds, most, count_tokens)
    return await loop.run(door, concurrency, spread_s)


class _Closed:
    def __init__(self, requests: Sequence[bytes], seconds: float, most: int | None, count_tokens: bool) -> None:
        self._requests = requests
        self._seconds = seconds
        self._left = most if most is not None else 2**62
        self._count_tokens = count_tokens
        self._outcome = Outcome()
        self._place: dict[Connection, int] = {}
        self._running = 0
        self._reconnects = 0
        self._ended = asyncio.Event()
        self._ends_at_s = 0.0

    async def run(self, door: Door, concurrency: int, spread_s: float) -> Outcome:
        self._door, loop = door, asyncio.get_running_loop()
        for number in range(concurrency):
            await self._connect(number)
        with undisturbed(self._outcome):
            started_s = time.perf_counter()
            self._ends_at_s = started_s + self._seconds
            self._running = concurrency
            for connection, number in list(self._place.items()):
                if spread_s:
                    loop.call_later(spread_s * number / concurrency, self._next, connection)
                else:
                    self._next(connection)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), self._seconds + PATIENCE_S)
            # Answers that came late count, and so does the time until then.
            self._outcome.seconds = time.perf_counter() - started_s
        for connection in list(self._place):
            connection.give_up()
        await asyncio.sleep(CLOSING_S)
        return self._outcome

    async def _connect(self, number: int) -> Connection:
        tokens = self._tokens if self._count_tokens else None
        connection = await Connection(self._answered, tokens).open(self._door.address)
        self._place[connection] = number
        return connection

    def _tokens(self, count: int) -> None:
        if time.perf_counter() < self._ends_at_s:
            self._outcome.tokens += count

    def _answered(self, connection: Connection, answer: Answer) -> None:
        self._outcome.answers.append(answer)
        self._next(connection)

    def _next(self, connection: Connection) -> None:
        now_s = time.perf_counter()
        if now_s >= self._ends_at_s or self._left <= 0:
            self._stop_one()
        elif not connection.is_open:  # closed between two requests, as a server may
            self._reopen(self._place.pop(connection))
        else:
            self._left -= 1
            connection.ask(self._requests[self._place[connection] % len(self._requests)], now_s)

    def _reopen(self, number: int) -> None:
        self._reconnects += 1
        if self._reconnects > RECONNECTS:
            self._stop_one()
            return
        task = asyncio.ensure_future(self._connect(number))
        task.add_done_callback(self._reopened)

    def _reopened(self, task: asyncio.Future[Connection]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._stop_one()
        else:
            self._next(task.result())

    def _stop_one(self) -> None:
        self._running -= 1
        if self._running <= 0:
            self._ended.set()

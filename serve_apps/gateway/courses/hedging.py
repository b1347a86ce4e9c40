"""A race for the first event: a second runner starts when the first is slow to begin, and whoever begins first goes on.

A runner is a coroutine that takes `claim`: it calls that when it has its first event, goes on if the answer is True,
and returns at once, undoing what it did, if it is False. A runner that is cancelled has lost, or its client has left.

Owns: starting, judging and ending runners. Must not know: leases, engines, events.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

Claim = Callable[[], bool]
Runner = Callable[[Claim], Awaitable[None]]


async def first_to_begin(first: Runner, second: Runner, after_s: float, may_hedge: Callable[[], bool]) -> None:
    """Run `first`, and `second` too if there is nothing of it after `after_s` and `may_hedge` then says so.

    Ends as the one ends that went on. When both fail before they begin, the first one's failure is told.
    """
    race = _Race()
    try:
        race.start(first)
        await race.progress(after_s)
        if race.undecided and may_hedge():
            race.start(second)
        while race.undecided:
            await race.progress(None)
        await race.result()
    finally:
        await race.end()


class _Race:
    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._winner: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()

    @property
    def undecided(self) -> bool:
        """Nobody has begun, and somebody may."""
        return self._winner is None and any(not task.done() for task in self._tasks)

    def start(self, runner: Runner) -> None:
        async def run() -> None:
            task = asyncio.current_task()

            def claim() -> bool:
                if self._winner is None:
                    self._winner = task
                    self._begun.set()
                return self._winner is task

            await runner(claim)

        self._tasks.append(asyncio.create_task(run()))

    async def progress(self, timeout_s: float | None) -> None:
        """Until somebody begins or ends, at most `timeout_s`."""
        begun = asyncio.create_task(self._begun.wait())
        pending = [task for task in self._tasks if not task.done()]
        try:
            await asyncio.wait([begun, *pending], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            begun.cancel()

    async def result(self) -> None:
        """Of the winner, once the others have gone; of the first where nobody has begun."""
        winner = self._winner or self._tasks[0]
        losers = [task for task in self._tasks if task is not winner]
        for task in losers:
            task.cancel()
        await asyncio.gather(*losers, return_exceptions=True)
        await asyncio.shield(winner)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def beginning_with(first: bytes, rest: AsyncIterator[bytes] | None = None) -> AsyncIterator[bytes]:
    """The whole of a stream whose beginning was read to see that it begins."""
    yield first
    if rest is not None:
        async for chunk in rest:
            yield chunk

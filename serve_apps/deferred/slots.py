"""How many requests of each model a worker has under way. Owns: the bound, and turns of tenants behind it.

Must not know: what is run. Without turns a batch of 50,000 lines would hold every place, and the fair queue behind
could not help those who never reach it. A free place goes to the tenant that has the fewest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator


class Slots:
    """Places by model. One event loop, no locks."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: dict[str, Counter[str]] = {}
        self._waiting: dict[str, dict[str, deque[asyncio.Future[None]]]] = {}

    @contextlib.asynccontextmanager
    async def place(self, model: str, tenant: str) -> AsyncIterator[None]:
        await self.take(model, tenant)
        try:
            yield
        finally:
            self.give(model, tenant)

    async def take(self, model: str, tenant: str) -> None:
        held, waiting = self._held.setdefault(model, Counter()), self._waiting.setdefault(model, {})
        if held.total() < self._size and not waiting:
            held[tenant] += 1
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.setdefault(tenant, deque()).append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give(model, tenant)  # handed over in the moment of leaving
            else:
                self._leave(waiting, tenant, future)
            raise

    def give(self, model: str, tenant: str) -> None:
        held, waiting = self._held[model], self._waiting[model]
        held[tenant] -= 1
        if not held[tenant]:
            del held[tenant]
        while waiting and held.total() < self._size:
            following = min(waiting, key=lambda name: held[name])
            future = waiting[following].popleft()
            if not waiting[following]:
                del waiting[following]
            if not future.done():  # done: whoever waited was cancelled, and has not noticed yet
                held[following] += 1
                future.set_result(None)

    def held(self, model: str) -> int:
        return self._held.get(model, Counter()).total()

    @staticmethod
    def _leave(waiting: dict[str, deque[asyncio.Future[None]]], tenant: str, future: asyncio.Future[None]) -> None:
        if tenant in waiting and future in waiting[tenant]:
            waiting[tenant].remove(future)
            if not waiting[tenant]:
                del waiting[tenant]

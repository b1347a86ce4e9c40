"""A batch line by line through the shared queue. Owns: reading ahead, and results going to the journal.

Must not know: how a batch begins or ends. Stopping it is harmless at any time: lines whose results were not committed
are run again by whoever takes the batch, and billed once, because nothing of them was committed.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

from cluster.state.deferred_batches import Batch
from cluster.vocabulary import RequestClass
from serve_apps.deferred.lines import Item, Place, read_some
from serve_apps.deferred.results import Journal, answered, request_id
from serve_apps.deferred.runner import Request
from serve_apps.deferred.shop import Shop
from serve_apps.gateway.auth import Caller

LAST_FLUSH_S = 10.0
MAX_BYTES_UNDER_WAY = 8 << 20


async def run_lines(shop: Shop, batch: Batch, input_name: str) -> None:
    """Run all lines that have no result yet. When it is stopped, what was answered until then is still committed."""
    parts = await asyncio.to_thread(shop.deferred.batches.parts, batch.id)
    done = {code // 2 for part in parts for code in part.lines}
    next_number = parts[-1].number + 1 if parts else 0
    journal = Journal(shop.deferred.batches, shop.files, batch, next_number)
    try:
        async with asyncio.TaskGroup() as group:
            writer = group.create_task(journal.write_forever())
            await _feed(shop, batch, input_name, done, journal)
            writer.cancel()
        await journal.flush()
    finally:
        # Nothing is left unless this was stopped. The writer is stopped by now: flush has one caller at a time.
        await asyncio.shield(_last_flush(journal))


async def _last_flush(journal: Journal) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_FLUSH_S):
            await journal.flush()


class _UnderWay:
    """What a batch has begun: so many lines, and so many bytes or one line.

    Lines that were refused are under way too, asleep and without a place in the queue. This bounds them: a batch whose
    tenant is refused everything reads no further, and keeps little in memory.
    """

    def __init__(self, max_lines: int) -> None:
        self._max_lines = max_lines
        self._lines = self._bytes = 0
        self._left = asyncio.Event()

    async def enter(self, size: int) -> None:
        """One caller at a time."""
        while self._lines >= self._max_lines or (self._lines and self._bytes + size > MAX_BYTES_UNDER_WAY):
            self._left.clear()
            await self._left.wait()
        self._lines += 1
        self._bytes += size

    def leave(self, size: int, task: asyncio.Task[None]) -> None:
        self._lines -= 1
        self._bytes -= size
        self._left.set()


async def _feed(shop: Shop, batch: Batch, input_name: str, done: set[int], journal: Journal) -> None:
    place: Place | None = Place()
    under_way = _UnderWay(shop.config.batches.max_in_flight)
    async with asyncio.TaskGroup() as group:
        while place is not None:
            items, place = await asyncio.to_thread(read_some, shop.files, input_name, place, done)
            for item in items:
                await under_way.enter(len(item.body))
                task = group.create_task(_one(shop, batch, item, journal))
                # Not in the task: one that is stopped before its first step runs nothing of itself.
                task.add_done_callback(partial(under_way.leave, len(item.body)))


async def _one(shop: Shop, batch: Batch, item: Item, journal: Journal) -> None:
    request_class = shop.lowest_class(item.model)
    request = Request(
        id=request_id(batch.id, item.line),
        path=batch.endpoint,
        model=item.model,
        body=item.body,
        caller=Caller(batch.tenant, batch.key_id),
        request_class=request_class or RequestClass.OFFLINE,  # None: the runner says that it is not served any more
        deadline_at_s=batch.expires_at_s,
    )
    answer = await shop.runner.run(request, shop.slots)
    await journal.add(answered(batch.id, item.line, item.custom_id, answer))

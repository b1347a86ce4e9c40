"""Writes finished requests to the ledger in the background. Owns: a queue and its one writer task.

Records are on their way within half a second; a store that is away is tried again while up to `MAX_PENDING` records
wait. Must not know: HTTP, costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from cluster.state import Store, UsageRecord

FLUSH_S = 0.5
MAX_PENDING = 200_000
LAST_TRIES = 4
"""At the end, when nobody will write later."""
log = logging.getLogger(__name__)


class Ledger:
    """Append-only, batched."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pending: list[UsageRecord] = []
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._write_forever())

    async def close(self) -> None:
        """Write what is left."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for _ in range(LAST_TRIES):
            await self._flush()
            if not self._pending:
                return
            await asyncio.sleep(FLUSH_S)
        log.error("the state store is away: %d usage records are lost with this process", len(self._pending))

    def add(self, record: UsageRecord) -> None:
        if len(self._pending) >= MAX_PENDING:
            log.error("the ledger has been unreachable for too long: dropping usage of request %s", record.request_id)
            return
        self._pending.append(record)

    async def _write_forever(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            await self._flush()

    async def _flush(self) -> None:
        if not self._pending:
            return
        batch, self._pending = self._pending, []
        written = False
        try:
            await asyncio.to_thread(self._store.add_usage, batch)
            written = True
        except Exception as error:
            log.warning("cannot write %d usage records (%s); trying again", len(batch), error)
        finally:
            # When cancelled, too: nobody then hears how the writing ended, and a record written twice is harmless.
            if not written:
                self._pending = batch + self._pending

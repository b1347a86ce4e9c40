"""The worker: claims work, keeps its claims alive, and gives up what is no longer its.

Concurrency: one event loop; the state store and the file store are asked in threads. Claims live by a heartbeat, which
has threads that nothing else uses: behind other work it would come too late, and all work would be given up for it. A
worker that cannot show that it lives stops its work before others may take it: it counts from the last heartbeat that
the store took, and stops at half of what others wait for.

Owns: which rows are at work here. Must not know: how they are run (batch_run.py, background.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cluster.state.deferred import BackgroundRow
from cluster.state.deferred_batches import Batch, LostClaimError
from serve_apps.deferred.background import run_background
from serve_apps.deferred.batch_run import BatchRun
from serve_apps.deferred.housekeeping import SWEEP_S, purge, sweep
from serve_apps.deferred.shop import Shop

MAX_BATCHES, BATCHES_OF_ONE_TENANT = 64, 8
MAX_BACKGROUND, BACKGROUND_OF_ONE_TENANT = 1024, 64
"""Requests that are refused (a budget is used up) stay at work here, asleep: tenants in that state must not fill it."""
CLAIMED_AT_ONCE = 128
"""Background requests: one transaction, for which SQLite makes all other writers wait."""
FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 60.0
FORGET_TROUBLES_S = 10 * LONGEST_RETRY_S
_T = TypeVar("_T")
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Job:
    """A claimed row at work."""

    task: asyncio.Task[None]
    release: Callable[[], None]
    run: BatchRun | None = None


@dataclass(slots=True)
class _Troubles:
    """Rows that failed here for reasons that are not their own: not tried again at once."""

    count: int = 0
    until_s: float = field(default=0.0)

    def again(self) -> None:
        self.count += 1
        self.until_s = time.monotonic() + min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** min(self.count, 10))


class Worker:
    """One worker process."""

    def __init__(self, shop: Shop, owner: str | None = None) -> None:
        self._shop = shop
        self.owner = owner or f"worker-{uuid.uuid4().hex[:16]}"
        self._batches: dict[str, _Job] = {}
        self._background: dict[str, _Job] = {}
        self._troubles: dict[str, _Troubles] = {}
        self._beaten_s = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []
        self._claiming = ThreadPoolExecutor(2, "claims")  # two: a claim that hangs delays no heartbeat

    def start(self) -> None:
        loops = (self._claim_forever(), self._beat_forever(), self._keep_house_forever())
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    async def close(self) -> None:
        """Leave in order: results so far are committed, and others may take what is left at once."""
        await self._stop(self._tasks)
        jobs = [*self._batches.values(), *self._background.values()]
        await self._stop([job.task for job in jobs])
        for job in jobs:
            try:
                await asyncio.to_thread(job.release)
            except Exception:
                log.warning("cannot release a claim; it will grow stale", exc_info=True)
        self._claiming.shutdown(wait=False)

    def check(self) -> None:
        """Raises RuntimeError if a loop has ended: it never should."""
        for task in self._tasks:
            if task.done():
                raise RuntimeError(f"a loop of the worker ended: {task}")

    @staticmethod
    async def _stop(tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- claims ---------------------------------------------------------------------------------------------------

    async def _claim_forever(self) -> None:
        pace, wait_s = self._shop.pace, 0.0
        while True:
            found = await self._tried(self._claim, "claim work")
            wait_s = pace.busy_s if found else min(pace.idle_s, 2 * max(wait_s, pace.busy_s))
            await asyncio.sleep(wait_s)

    async def _claim(self) -> bool:
        deferred, stale_s = self._shop.deferred, self._shop.config.batches.stale_after_s
        rows: list[BackgroundRow] = []
        batches: list[Batch] = []
        if room := MAX_BACKGROUND - len(self._background):
            most = min(room, CLAIMED_AT_ONCE)
            rows = await self._on_claims(
                deferred.claim_background, self.owner, time.time(), stale_s, most, BACKGROUND_OF_ONE_TENANT
            )
        for row in rows:
            self._begin_background(row)
        if room := MAX_BATCHES - len(self._batches):
            batches = await self._on_claims(
                deferred.batches.claim, self.owner, time.time(), stale_s, room, BATCHES_OF_ONE_TENANT
            )
        for batch in batches:
            self._begin_batch(batch)
        return bool(rows or batches)

    async def _on_claims(self, call: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._claiming, call, *arguments)

    def _begin_batch(self, batch: Batch) -> None:
        run = BatchRun(self._shop, batch)
        work = self._guarded(batch.id, run.run())
        release = self._shop.deferred.batches.release
        job = _Job(asyncio.create_task(work), lambda: release(batch.id, batch.fence), run)
        self._enter(self._batches, batch.id, job)

    def _begin_background(self, row: BackgroundRow) -> None:
        work = self._guarded(row.id, run_background(self._shop, row))
        release = self._shop.deferred.release_background
        job = _Job(asyncio.create_task(work), lambda: release(row.id, row.fence))
        self._enter(self._background, row.id, job)

    def _enter(self, jobs: dict[str, _Job], row_id: str, job: _Job) -> None:
        """At work until its task ends. A row that was claimed anew meanwhile keeps its entry."""
        if (before := jobs.get(row_id)) is not None:
            before.task.cancel()
        jobs[row_id] = job

        def left(_: asyncio.Task[None]) -> None:
            if jobs.get(row_id) is job:
                del jobs[row_id]

        job.task.add_done_callback(left)

    async def _guarded(self, row_id: str, work: Coroutine[Any, Any, None]) -> None:
        """Run it; after a trouble that is not the row's own, keep the claim for a pause, then give it back."""
        try:
            await work
        except* LostClaimError:
            self._troubles.pop(row_id, None)
            log.info("%s is another worker's now", row_id)
        except* Exception:
            trouble = self._troubles.setdefault(row_id, _Troubles())
            trouble.again()
            log.exception("%s failed; it is tried again in a while", row_id)
            await asyncio.sleep(max(0.0, trouble.until_s - time.monotonic()))
            await self._give_back(row_id)
        else:
            self._troubles.pop(row_id, None)

    async def _give_back(self, row_id: str) -> None:
        job = self._batches.get(row_id) or self._background.get(row_id)
        if job is not None:
            await self._tried(lambda: asyncio.to_thread(job.release), f"release {row_id}")

    # --- heartbeats -----------------------------------------------------------------------------------------------

    async def _beat_forever(self) -> None:
        stale_s = self._shop.config.batches.stale_after_s
        beat_s = min(self._shop.pace.beat_s, stale_s / 8)
        while True:
            await asyncio.sleep(beat_s)
            if not self._batches and not self._background:
                self._beaten_s = time.monotonic()
                continue
            await self._tried(lambda: self._beat(stale_s), "show that this worker lives")
            if time.monotonic() - self._beaten_s > stale_s / 2:
                self._give_up_all()

    async def _beat(self, stale_s: float) -> None:
        deferred, batches, background = self._shop.deferred, dict(self._batches), dict(self._background)
        began_s = time.monotonic()
        async with asyncio.timeout(stale_s / 2):
            statuses = await self._on_claims(deferred.batches.beat, self.owner, batches, time.time())
            alive = await self._on_claims(deferred.beat_background, self.owner, background, time.time())
        self._beaten_s = began_s
        for batch_id, job in batches.items():
            if batch_id not in statuses:
                self._lost(job)
            elif statuses[batch_id] == "cancelling" and job.run is not None:
                job.run.cancel()
        for row_id, job in background.items():
            if row_id not in alive:  # cancelled, deleted, or taken over
                self._lost(job)

    def _forget_troubles(self) -> None:
        """Rows that had troubles here and have not come back: they ended elsewhere, or were deleted."""
        old_s = time.monotonic() - FORGET_TROUBLES_S
        for row_id in [row_id for row_id, trouble in self._troubles.items() if trouble.until_s < old_s]:
            del self._troubles[row_id]

    def _lost(self, job: _Job) -> None:
        """A run that has just ended its row does not find it either; it needs no more than a moment."""
        asyncio.get_running_loop().call_later(self._shop.pace.beat_s, job.task.cancel)

    def _give_up_all(self) -> None:
        log.error("the state store did not take a heartbeat in time: giving up all work")
        for job in (*self._batches.values(), *self._background.values()):
            job.task.cancel()

    # --- house ----------------------------------------------------------------------------------------------------

    async def _keep_house_forever(self) -> None:
        swept_s = float("-inf")
        while True:
            await self._tried(lambda: asyncio.to_thread(purge, self._shop), "delete what has expired")
            if time.monotonic() - swept_s > SWEEP_S:
                swept_s = time.monotonic()
                await self._tried(lambda: asyncio.to_thread(sweep, self._shop), "sweep the file store")
            self._forget_troubles()
            await asyncio.sleep(self._shop.pace.house_s)

    async def _tried(self, call: Callable[[], Awaitable[Any]], what: str) -> Any:
        """A store that is away must not end the worker: the next round asks again."""
        try:
            return await call()
        except Exception as error:
            log.warning("cannot %s: %s", what, error)
            return None

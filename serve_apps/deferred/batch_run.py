"""One batch from acceptance to its end. Owns: the order of its states. Must not know: who claims batches.

    validating -> in_progress -> finalizing -> completed | expired
         \\-> failed (a bad input)        any of the first two -> cancelling -> cancelled

Every step may be cut off anywhere and done again by another worker: it changes the row last, and by a write that names
the claim. What lies in files before that is named by no row.
"""

from __future__ import annotations

import asyncio
import logging
import time

from batch_jobs.input.openai_batch import URLS as JOB_URLS
from cluster.state.deferred_batches import Batch, Sums
from cluster.state.deferred_files import object_of
from serve_apps.deferred import lines
from serve_apps.deferred.lines import Rules, Scan
from serve_apps.deferred.offline_job import run_job, stop_job
from serve_apps.deferred.outputs import JOB, drop_parts, write_outputs
from serve_apps.deferred.queue_lines import run_lines
from serve_apps.deferred.shop import Shop

QUEUE = "queue"
log = logging.getLogger(__name__)


class BatchRun:
    """The claim of one batch at work. Raises LostClaimError when the batch is another worker's."""

    def __init__(self, shop: Shop, batch: Batch) -> None:
        self._shop = shop
        self._batch = batch
        self._input = object_of(batch.input_file_id)
        self._cancelled = asyncio.Event()

    @property
    def batch(self) -> Batch:
        return self._batch

    def cancel(self) -> None:
        """The client wants no more results."""
        self._cancelled.set()

    async def run(self) -> None:
        book = self._shop.deferred.batches
        if self._batch.mode is None and not await self._begin():
            return
        batch = self._batch
        if batch.status == "in_progress":
            await self._work()
        if batch.mode == JOB:
            await stop_job(self._shop, batch)
        final = await asyncio.to_thread(book.begin_finalizing, batch.id, batch.fence, time.time())
        ending = await self._shop.on_whole_file(write_outputs, self._shop, final, self._input)
        await asyncio.to_thread(
            book.finish, batch.id, batch.fence, ending.status, ending.files, ending.sums, time.time()
        )
        log.info(
            "batch %s: %s (%d done, %d errors)", batch.id, ending.status, ending.sums.completed, ending.sums.failed
        )
        await asyncio.to_thread(drop_parts, self._shop, batch)

    async def _begin(self) -> bool:
        """Validate and choose how to run it; False when the batch ended here."""
        book, batch = self._shop.deferred.batches, self._batch
        found = await self._scan()
        mode = self._mode(found)
        if found.problems:
            if batch.status == "cancelling":  # nothing of it can be run, and nobody wants to know why
                await asyncio.to_thread(book.finish, batch.id, batch.fence, "cancelled", {}, Sums(), time.time())
            else:
                await asyncio.to_thread(book.fail, batch.id, batch.fence, found.problems, time.time())
            return False
        model = next(iter(found.models)) if len(found.models) == 1 else None
        self._batch = await asyncio.to_thread(book.begin, batch.id, batch.fence, time.time(), found.total, model, mode)
        return True

    async def _scan(self) -> Scan:
        """What the input holds. Raises what reading raises while there is time to try again."""
        batch, rules = self._batch, _rules(self._shop, self._batch)
        try:
            return await self._shop.on_whole_file(lines.scan, self._shop.files, self._input, rules)
        except Exception:
            if batch.status != "cancelling" and time.time() < batch.expires_at_s:
                raise
            # Whatever is wrong with this file, its batch must not be tried for ever.
            log.exception("batch %s: its input could not be read in time", batch.id)
            found = Scan()
            found.add("input_unreadable", "the input file could not be read before the completion window ended")
            return found

    def _mode(self, found: Scan) -> str:
        """Adds a problem when there is no way to run it."""
        config = self._shop.config
        threshold = config.batches.offline_job_threshold
        queued = all(self._shop.lowest_class(model) is not None for model in found.models)
        single = next(iter(found.models)) if len(found.models) == 1 else None
        can_job = single is not None and self._shop.jobs is not None and self._batch.endpoint in JOB_URLS
        large = threshold is not None and found.total > threshold
        if can_job and single is not None and config.offline_deployments(single) and (large or not queued):
            return JOB
        if not queued and not found.problems:
            message = "a batch with a model that is deployed for offline jobs alone must name that model in every line"
            found.add("model_mismatch", message, param="model")
        return QUEUE

    async def _work(self) -> None:
        """Run it until it is done, cancelled or out of time."""
        batch = self._batch
        course = (run_job if batch.mode == JOB else run_lines)(self._shop, batch, self._input)
        work = asyncio.create_task(course)
        asked = asyncio.create_task(self._cancelled.wait())
        try:
            left_s = max(0.0, batch.expires_at_s - time.time())
            await asyncio.wait({work, asked}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
            work.cancel()
            await asyncio.wait({work})  # it commits what it has before it ends
        if not work.cancelled():
            work.result()


def _rules(shop: Shop, batch: Batch) -> Rules:
    config = shop.config
    models = {d.model for d in config.serving().values()}
    if batch.endpoint in JOB_URLS and shop.jobs is not None:
        models |= {model for model in config.models if config.offline_deployments(model)}
    return Rules(batch.endpoint, models, config.batches.max_requests, config.gateway.max_body_bytes)

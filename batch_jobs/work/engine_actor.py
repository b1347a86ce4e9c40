"""One engine process of a job: batches of rows in, committed parts out.

Role: the callable class that Ray Data runs on an actor. Owns: how many rows are in the engine, and the end of the
process. Must not know: which engine it is, how the driver counts.

Concurrency: Ray calls this actor from several threads at once, each with one batch, but all batches run on one event
loop. `max_in_flight` rows are inside the engine; more wait for their part to be committed, and those hold no place in
it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batch_jobs.engines.base import EngineDied, EngineSettings, OfflineEngine, load_engine
from batch_jobs.errors import RowError
from batch_jobs.input.reading import ROW_FIELD
from batch_jobs.input.rows import Row, prompt_of
from batch_jobs.output.part_buffer import PartBuffer, PartSettings
from batch_jobs.output.parts import Result
from batch_jobs.work.commit_log import RowStat
from batch_jobs.work.orphans import die_with_children

if TYPE_CHECKING:
    import numpy as np
    from ray.actor import ActorHandle

_TICK_S = 0.2
_BEAT_S = 1.0
_LAST_FLUSH_S = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActorSettings:
    """Plain data that every engine process of a job starts from."""

    engine_class: str
    engine: EngineSettings
    parts: PartSettings
    max_in_flight: int


class RemoteLog:
    """The commit log actor, from the side of one engine."""

    def __init__(self, actor: ActorHandle[Any], engine_id: str) -> None:
        self._actor = actor
        self._engine_id = engine_id

    async def admit(self, ids: Sequence[str]) -> list[str]:
        done: list[str] = await self._actor.admit.remote(self._engine_id, list(ids))
        return done

    async def publish(self, part: str, stats: Sequence[RowStat]) -> list[str]:
        refused: list[str] = await self._actor.publish.remote(self._engine_id, part, list(stats))
        return refused

    async def beat(self, stopped: bool) -> bool:
        stop: bool = await self._actor.beat.remote(self._engine_id, stopped)
        return stop


class EngineActor:
    """Built once per actor process. A process that restarts is a new engine with a new id."""

    def __init__(self, settings: ActorSettings, log_actor: ActorHandle[Any]) -> None:
        import ray

        self._engine_id = uuid.uuid4().hex[:12]
        self._settings = settings
        self._log = RemoteLog(log_actor, self._engine_id)
        ray.get(log_actor.register.remote(self._engine_id))
        die_with_children()
        began_s = time.monotonic()
        self._engine: OfflineEngine = load_engine(settings.engine_class, settings.engine)
        start_s = time.monotonic() - began_s
        ray.get(log_actor.ready.remote(self._engine_id, start_s))
        log.info("engine %s is ready after %.1f s (pid %d)", self._engine_id, start_s, os.getpid())
        self._running = 0
        self._stopping = False
        self._open: dict[str, asyncio.Task[None]] = {}
        self._ticker: asyncio.Task[None] | None = None

    def _start_on_loop(self) -> None:
        """The event loop exists only once the first batch arrives."""
        if self._ticker is None:
            self._slots = asyncio.Semaphore(self._settings.max_in_flight)
            self._parts = PartBuffer(self._settings.parts, self._engine_id, self._log)
            self._ticker = asyncio.get_running_loop().create_task(self._tick())

    async def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> AsyncIterator[dict[str, list[Any]]]:
        """Yields one small record per row, after the row is committed."""
        self._start_on_loop()
        rows = [Row.unpack(data) for data in batch[ROW_FIELD]]
        done = set(await self._log.admit([row.id for row in rows]))
        tasks = [self._task(row) for row in rows if row.id not in done]
        for finished in asyncio.as_completed(tasks):
            await finished
            yield {"committed": [1]}
        if done:
            yield {"committed": [0]}

    def _task(self, row: Row) -> asyncio.Task[None]:
        """A batch that Ray sends twice to the same living process joins the rows already at work."""
        task = self._open.get(row.id)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._answer(row))
            self._open[row.id] = task
            task.add_done_callback(lambda _: self._open.pop(row.id, None))
        return task

    async def _answer(self, row: Row) -> None:
        async with self._slots:
            if self._stopping:
                await asyncio.Future()  # the job ends here; the rerun does this row
            self._running += 1
            try:
                result = await self._result(row)
            finally:
                self._running -= 1
        await self._parts.add(row, result)

    async def _result(self, row: Row) -> Result:
        try:
            if row.problem is not None:
                raise row.problem
            return await self._engine.generate(row.id, prompt_of(row.columns))
        except RowError as error:
            return Result(error={"type": error.kind.value, "message": error.message})
        except EngineDied as error:
            log.error("engine %s died: %s", self._engine_id, error)
            await self._end_process()
            raise

    async def _end_process(self) -> None:
        """Ray replaces a process that exits; a Python exception would fail the job instead."""
        try:
            await asyncio.wait_for(self._parts.flush(), _LAST_FLUSH_S)
        except TimeoutError:
            log.warning("finished rows could not be committed in time; they will be done again")
        os._exit(1)

    async def _tick(self) -> None:
        """Commit parts that are due, show signs of life, obey the order to stop."""
        next_beat_s = 0.0
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                if self._stopping or self._parts.due(idle=self._running == 0):
                    await self._parts.flush()
                if self._stopping or time.monotonic() >= next_beat_s:
                    self._stopping = await self._log.beat(stopped=self._stopping)
                    next_beat_s = time.monotonic() + _BEAT_S
            except Exception:
                log.exception("the commit log cannot be reached; the job is over for this engine")
                os._exit(1)

"""One engine process of a job: it asks for rows as it has room, runs each on its own, and writes finished ones.

Role: keep one engine full without holding more than it needs. Owns: the rows inside the engine, and the end of the
process. Must not know: which engine it is, how the ledger decides.

Concurrency: one event loop. A row is a task of its own from the moment it arrives until it is in the part buffer, so
no row waits for another. The engine holds up to `depth` rows: twice what it runs at once, so that a finished row is
replaced within the same engine step even when a whole batch ends together.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import time
import traceback
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_jobs.engines.base import EngineDied, EngineLimits, EngineSettings, OfflineEngine, load_engine
from batch_jobs.errors import RowErrorKind
from batch_jobs.input.answers import combine
from batch_jobs.input.asks import task_path, unpack
from batch_jobs.input.spec import JobSpec
from batch_jobs.output.part_buffer import PartBuffer, PartSettings
from batch_jobs.output.parts import Result
from batch_jobs.reporting.stats import RowStat
from batch_jobs.work.copies import CommittedAnswers
from batch_jobs.work.messages import EngineReport, Orders, Work
from batch_jobs.work.orphans import die_with_children

if TYPE_CHECKING:
    from ray.actor import ActorHandle

BEAT_S = 0.5
_LAST_FLUSH_S = 10.0
_MEMORY = 0.1
"""Weight of the newest row in the mean time of a row."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActorSettings:
    """Plain data that every engine process of a pool starts from."""

    pool: str
    engine_class: str
    engine: EngineSettings
    spec: JobSpec
    parts: PartSettings
    max_in_flight: int | None = None
    """Rows in the engine at most; None = what its own limits suggest."""


class TaskNotOffered(Exception):
    """The engine runs, but every row of the job would fail in it."""


class RemoteLedger:
    """The ledger actor, from the side of one engine."""

    def __init__(self, actor: ActorHandle[Any], engine_id: str) -> None:
        self._actor = actor
        self._engine_id = engine_id

    async def exchange(self, report: EngineReport) -> Orders:
        orders: Orders = await self._actor.exchange.remote(self._engine_id, report)
        return orders

    async def publish(self, part: str, stats: Sequence[RowStat]) -> list[int]:
        refused: list[int] = await self._actor.publish.remote(self._engine_id, part, list(stats))
        return refused


class EngineActor:
    """Built once per actor process. A process that restarts is a new engine with a new id in the same seat."""

    def __init__(self, settings: bytes, seat: str) -> None:
        """`settings`: pickled ActorSettings. Nothing that can fail or takes time: Ray does not retry constructors."""
        self._engine_id = uuid.uuid4().hex[:12]
        self._settings: ActorSettings = pickle.loads(settings)
        self._seat = seat
        self._tasks: dict[int, asyncio.Task[None]] = {}
        """Rows inside the engine by number, oldest first."""
        self._answered: set[int] = set()
        """Rows of those that wait for room in the part buffer: their answers are theirs already."""
        self._returned: list[int] = []
        self._begun = self._leaving = False
        self._mean_seconds = 0.0
        self._mean_tokens = 0.0

    async def run(self, ledger: ActorHandle[Any]) -> None:
        """Work until the job is done or stopped. The process ends itself when the engine cannot go on."""
        if self._begun:  # Ray could not tell the driver whether the first call arrived. A new process can begin anew.
            log.error("engine %s was asked to run twice", self._engine_id)
            os._exit(1)
        self._begun = True
        self._actor = ledger
        self._ledger = RemoteLedger(ledger, self._engine_id)
        try:
            await self._work()
        except Exception:
            log.exception("engine %s cannot go on", self._engine_id)
            os._exit(1)

    async def _work(self) -> None:
        _without_niceness()
        await self._actor.register.remote(self._engine_id, self._settings.pool, self._seat)
        die_with_children()
        self._limits = await self._start()
        self._free, self._idle = asyncio.Event(), asyncio.Event()
        self._answers = CommittedAnswers(self._settings.parts)
        self._parts = PartBuffer(self._settings.parts, self._engine_id, self._ledger)
        flusher = asyncio.create_task(self._flush_when_due())
        try:
            await self._converse()
        finally:
            flusher.cancel()

    async def _start(self) -> EngineLimits:
        """Blocks this process' event loop for as long as the engine takes to load: nothing else happens on it yet."""
        began_s = time.monotonic()
        try:
            self._engine: OfflineEngine = load_engine(self._settings.engine_class, self._settings.engine)
            limits = await self._engine.start()
            self._check_task(limits)
        except Exception as error:
            hopeless = isinstance(error, TaskNotOffered)
            await self._actor.start_failed.remote(self._engine_id, _message(error), hopeless)
            os._exit(1)  # a fresh process is the only clean retry; the driver decides how often
        start_s = time.monotonic() - began_s
        await self._actor.ready.remote(self._engine_id, limits, start_s)
        log.info("engine %s is ready after %.1f s (pid %d): %s", self._engine_id, start_s, os.getpid(), limits)
        return limits

    def _check_task(self, limits: EngineLimits) -> None:
        """Every row would fail on an engine that does not offer the job's task."""
        spec = self._settings.spec
        path = None if spec.openai_batch else task_path(spec.task)
        if path is not None and limits.paths is not None and path not in limits.paths:
            raise TaskNotOffered(
                f"the engine does not offer {spec.task} ({path}) for this model. Choose another model, or set what "
                "its engine needs for it in `engine.args` (for vLLM embeddings: `runner: pooling, convert: embed`)"
            )

    async def _converse(self) -> None:
        while True:
            want = self._depth() - len(self._tasks)
            if want <= 0:
                self._free.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._free.wait(), BEAT_S)
                want = max(0, self._depth() - len(self._tasks))
            returned, self._returned = tuple(self._returned), []
            inside = len(self._tasks)
            report = EngineReport(want, self._mean_seconds, self._running_at_once(), self._depth(), inside, returned)
            orders = await self._ledger.exchange(report)
            if orders.lost:
                log.error("engine %s was silent for too long and has been given up", self._engine_id)
                os._exit(1)
            for work in orders.work:
                self._begin(work)
            if orders.recall:
                await self._hand_back(orders.recall)
            if orders.stop or orders.done:
                await self._leave()
                return

    def _running_at_once(self) -> int:
        """Rows that the engine runs at once, as far as its KV cache lets them."""
        running = self._limits.max_running
        if self._limits.kv_tokens and self._mean_tokens:
            running = max(1, min(running, int(self._limits.kv_tokens / self._mean_tokens)))
        return running

    def _depth(self) -> int:
        """Rows to hold: those that run at once, and as many to follow them."""
        return self._settings.max_in_flight or 2 * self._running_at_once()

    def _begin(self, work: Work) -> None:
        task = asyncio.get_running_loop().create_task(self._finish(work))
        self._tasks[work.number] = task
        task.add_done_callback(lambda _: self._forget(work.number, task))

    def _forget(self, number: int, task: asyncio.Task[None]) -> None:
        self._answered.discard(number)
        if self._tasks.get(number) is task:
            del self._tasks[number]
            if task.cancelled() and not self._leaving:  # by nobody here: the row must not be forgotten
                self._returned.append(number)
        self._free.set()
        if not self._tasks:
            self._idle.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("engine %s: row %d broke the actor: %s", self._engine_id, number, _message(error))
            os._exit(1)

    async def _finish(self, work: Work) -> None:
        began_s = time.monotonic()
        row, asks = unpack(work.payload)
        if work.copy is not None:
            result = await self._answers.result(work.copy)
        elif work.error is not None:
            result = Result(error={"type": RowErrorKind.ENGINE_CRASHED.value, "message": work.error})
        elif row.problem is not None:
            result = Result(error={"type": row.problem.kind.value, "message": row.problem.message})
        else:
            try:
                replies = await asyncio.gather(*(self._engine.ask(ask) for ask in asks))
            except EngineDied as error:
                log.error("engine %s died: %s", self._engine_id, error)
                await self._end_process()
                raise
            result = combine(self._settings.spec, row, replies)
            self._learn(time.monotonic() - began_s, result.prompt_tokens + result.output_tokens)
        self._answered.add(work.number)
        await self._parts.add(work.number, row, result, time.monotonic() - began_s)

    def _learn(self, seconds: float, tokens: int) -> None:
        weight = _MEMORY if self._mean_seconds else 1.0
        self._mean_seconds += weight * (seconds - self._mean_seconds)
        self._mean_tokens += weight * (tokens - self._mean_tokens)

    async def _hand_back(self, count: int) -> None:
        """Take the youngest rows out of the engine, but none that may have started: it runs the oldest first."""
        inside = [number for number in self._tasks if number not in self._answered]
        tasks = {number: self._tasks.pop(number) for number in inside[self._running_at_once() :][-count:]}
        for task in tasks.values():
            task.cancel()
        if tasks:
            await asyncio.wait(tasks.values())
        self._returned += [number for number, task in tasks.items() if task.cancelled()]

    async def _leave(self) -> None:
        """Publish what is finished; what still runs is left to a rerun."""
        self._leaving = True
        for task in self._tasks.values():
            task.cancel()
        await self._parts.flush()
        await self._ledger.exchange(EngineReport(0, stopped=True))

    async def _end_process(self) -> None:
        """Ray replaces a process that exits. What is finished is published first, if that is possible."""
        try:
            await asyncio.wait_for(self._parts.flush(), _LAST_FLUSH_S)
        except Exception:
            log.warning("finished rows could not be published; they will be done again")
        os._exit(1)

    async def _flush_when_due(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), BEAT_S)
            self._idle.clear()
            if self._parts.due(idle=not self._tasks):
                try:
                    await self._parts.flush()
                except Exception:
                    log.exception("the ledger cannot be reached, or the output not written: the job is over here")
                    os._exit(1)


def _without_niceness() -> None:
    """Ray makes its workers nice; whoever computes what is paid for should not wait for those who watch."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)


def _message(error: BaseException) -> str:
    """The exception in one line, with the innermost frame for those who look for it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].name} in {Path(frames[-1].filename).name})" if frames else ""
    return f"{type(error).__name__}: {str(error).strip()}{where}"

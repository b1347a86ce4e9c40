"""The ledger as a Ray actor: waiting for work, publishing, metrics.

Role: one ordered place for all engines of a run, and long polls on it. Owns: the actor, its clock and its waiting.
Must not know: what is inside rows.

It runs on the driver's node and dies with the driver's job; it is never restarted, because its memory of this run's
claims is what makes a commit safe. When it is lost, the job fails and a rerun continues from the parts.

Concurrency: one event loop. Only the rename of a part leaves it (a thread); while it does, `_publishing` keeps every
other publish and every loss of an engine waiting, so that what was checked before the rename is still true after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from batch_jobs.engines.base import EngineLimits
from batch_jobs.input.prepared import Prepared
from batch_jobs.ordering.window import Window
from batch_jobs.output.parts import LOCK_FILE, Totals, staged_name
from batch_jobs.reporting.metrics import JobMetrics
from batch_jobs.reporting.stats import PoolLife, Progress, RowStat, RunStats
from batch_jobs.storage import Storage
from batch_jobs.work.billing import Bill, Billing, Span
from batch_jobs.work.engine_life import Patience
from batch_jobs.work.ledger import Ledger
from batch_jobs.work.messages import EngineReport, Orders

if TYPE_CHECKING:
    from ray.actor import ActorHandle

MAX_START_FAILURES = 3
"""So many in a row, and a seat is given up."""
MOVE_ATTEMPTS = 3
MOVE_PAUSE_S = 0.5
POLL_S = 1.0
"""The longest that an engine's question, or the driver's offer, waits inside the actor."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LedgerSettings:
    """Plain data from which the actor starts."""

    output: str
    run_id: str
    model: str
    pools: tuple[str, ...]
    max_engines: int
    window_rows: int
    window_bytes: int
    ordered: bool
    dedupe: bool
    patience: Patience
    billing: Billing | None = None


@dataclass(frozen=True)
class Troubles:
    """What the driver has to act on."""

    start_failures: dict[str, list[str]]
    """Messages of engines that could not start, by seat."""
    stuck_seats: list[str]
    """Seats whose process was given up and must be ended. Told once."""


class LedgerActor:
    """All methods are called through Ray."""

    def __init__(self, settings: LedgerSettings) -> None:
        self._settings = settings
        self._storage = Storage(settings.output)
        window = Window(settings.window_rows, settings.window_bytes, order=settings.ordered)
        self._ledger = Ledger(window, settings.max_engines, settings.dedupe, settings.patience)
        self._stats = RunStats(settings.pools)
        self._metrics = JobMetrics(settings.model)
        self._bill = Bill(settings.billing) if settings.billing else None
        self._billed: asyncio.Task[str | None] | None = None
        self._began_s = time.monotonic()
        self._ended_s: dict[str, float] = {}
        self._ready_s: dict[str, float] = {}
        self._start_failures: dict[str, list[str]] = {}
        self._stuck_seats: list[str] = []
        self._changed = asyncio.Event()
        self._publishing = asyncio.Lock()

    # The driver

    async def offer(self, rows: list[Prepared]) -> bool:
        """Take rows in as soon as there is room; False when the job is stopping and nothing more is needed."""
        while not self._ledger.stopping:
            if self._ledger.room > 0:
                self._ledger.offer(rows)
                self._notify()
                return True
            await self._change(POLL_S)
        return False

    async def close(self) -> None:
        self._ledger.close()
        self._notify()

    async def stop(self) -> None:
        self._ledger.stop()
        self._notify()

    async def seat_lost(self, seat: str) -> None:
        async with self._publishing:
            self._end(self._ledger.seat_lost(seat))
        self._notify()

    async def troubles(self) -> Troubles:
        """For whoever keeps the processes."""
        stuck, self._stuck_seats = self._stuck_seats, []
        return Troubles(self._start_failures, stuck)

    async def progress(self) -> Progress:
        """Also the moment at which engines that fell silent are given up."""
        async with self._publishing:
            for stuck in self._ledger.lose_stuck():
                self._end(stuck.id)
                self._stuck_seats.append(stuck.seat)
        self._bill_on()
        ledger = self._ledger
        lives = {pool: self._pool_life(pool) for pool in self._settings.pools}
        for pool, life in lives.items():
            self._metrics.gauges(pool, life.running_rows, life.engines_ready)
        self._metrics.rows_left(ledger.waiting + ledger.running)
        return Progress(
            stats=self._stats,
            lives=lives,
            stopped=ledger.done or (ledger.stopping and ledger.at_rest),
            failure=ledger.failure,
            waiting_rows=ledger.waiting,
            running_rows=ledger.running,
        )

    async def settle(self, attempts: int) -> str | None:
        """Bring the ledger of usage up to date; what went wrong, or None."""
        return await self._bill.settle(self._spans(), attempts) if self._bill else None

    def _bill_on(self) -> None:
        """Behind the driver's looks; what fails is written with the next one."""
        if self._bill is not None and (self._billed is None or self._billed.done()):
            self._billed = asyncio.create_task(self._bill.settle(self._spans(), 1))

    def _spans(self) -> list[Span]:
        now_s = time.monotonic()
        past_s = time.time() - now_s  # to the clock on the wall
        lives = self._ledger.engines.values()
        return [Span(e.id, e.pool, past_s + e.born_s, past_s + self._ended_s.get(e.id, now_s)) for e in lives]

    # The engines

    async def register(self, engine: str, pool: str, seat: str) -> None:
        async with self._publishing:
            self._end(self._ledger.register(engine, pool, seat))

    async def ready(self, engine: str, limits: EngineLimits, start_s: float) -> None:
        self._ledger.ready(engine, limits, start_s)
        self._ready_s[engine] = time.monotonic()
        self._start_failures.pop(self._ledger.engines[engine].seat, None)

    async def start_failed(self, engine: str, message: str, hopeless: bool = False) -> None:
        """`hopeless`: another try would end the same."""
        seat = self._ledger.engines[engine].seat
        self._start_failures.setdefault(seat, []).extend([message] * (MAX_START_FAILURES if hopeless else 1))
        self._ended_s.setdefault(engine, time.monotonic())

    async def exchange(self, engine: str, report: EngineReport) -> Orders:
        """Orders for an engine, as soon as there are any; an empty answer after POLL_S."""
        deadline_s = time.monotonic() + POLL_S
        if report.returned:
            self._notify()
        while True:
            recalled = self._ledger.recalled
            orders = self._ledger.exchange(engine, report)
            if self._ledger.recalled > recalled:
                self._notify()  # a victim that waits here hears of it now
            if orders != Orders() or report.want <= 0:
                return self._answer(engine, orders)
            report = replace(report, returned=())
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not await self._change(left_s):
                return orders

    def _answer(self, engine: str, orders: Orders) -> Orders:
        if orders.work or orders.stop:
            self._notify()  # there is room in the window, or a steal to be told
        if orders.done or self._ledger.engines[engine].stopped:
            self._end(engine)
        return orders

    async def publish(self, engine: str, part: str, stats: Sequence[RowStat]) -> list[int]:
        """Commit a staged part. Returns the rows that make it unacceptable; then nothing was committed."""
        async with self._publishing:
            numbers = [stat.number for stat in stats]
            refused = self._ledger.refused(engine, numbers)
            if refused:
                return refused
            self._ledger.publishing(numbers)
            try:
                await asyncio.to_thread(self._move, part)
                self._count(engine, part, stats)
            finally:
                self._ledger.publishing(())
        self._notify()
        return []

    def _count(self, engine: str, part: str, stats: Sequence[RowStat]) -> None:
        pool = self._ledger.engines[engine].pool
        try:
            self._ledger.committed(engine, part, stats)
        except Exception as error:  # the part is there; what is in memory cannot be trusted any more
            self._ledger.fail(f"the account of {part} failed ({error!r}). Rerun to continue.")
            raise
        if self._bill is not None:
            totals = Totals()
            for stat in stats:
                totals.add(*stat[2:6], stat.duplicate)
            self._bill.book(part, totals, pool)
        self._stats.record(pool, time.monotonic() - self._began_s, stats)
        self._metrics.count(pool, stats)

    def _move(self, part: str) -> None:
        """Raises when the part has not got its name. When nobody can know whether it has, the job must end: its rows
        may neither be counted nor done again before the output has been read anew."""
        if not self._owns_output():
            self._ledger.fail("another run has taken over this output")
            raise RuntimeError(self._ledger.failure)
        for attempt in range(MOVE_ATTEMPTS):
            try:
                self._storage.move(staged_name(self._settings.run_id, part), part)
                return
            except OSError as error:
                log.warning("part %s was not moved (%s)", part, error)
                if self._is_there(part):  # an object store copies, then deletes: the copy is whole, the rest is tidying
                    return
                if isinstance(error, FileNotFoundError) or attempt == MOVE_ATTEMPTS - 1:
                    raise
                time.sleep(MOVE_PAUSE_S * 2**attempt)

    def _is_there(self, part: str) -> bool:
        try:
            return self._storage.exists(part)
        except OSError as error:
            self._ledger.fail(f"nobody can tell whether {part} was committed ({error}). Rerun to continue.")
            raise

    def _owns_output(self) -> bool:
        try:
            return bool(json.loads(self._storage.read(LOCK_FILE))["run_id"] == self._settings.run_id)
        except FileNotFoundError:
            return False

    # Time and waiting

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self, within_s: float) -> bool:
        """Wait until something changed; False when nothing did."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), within_s)
            return True
        return False

    def _end(self, engine: str | None) -> None:
        if engine is None or engine in self._ended_s:
            return
        self._ended_s[engine] = time.monotonic()
        life = self._ledger.engines[engine]
        if life.limits is None:  # killed while it started, so that it could not say why
            message = "the process was killed while the engine started (often memory; see the actors' log)"
            self._start_failures.setdefault(life.seat, []).append(message)

    def _pool_life(self, pool: str) -> PoolLife:
        """What the engines of a pool cost: from registration to their end, or to now."""
        engines = [engine for engine in self._ledger.engines.values() if engine.pool == pool]
        now = time.monotonic()
        ready = [self._ready_s[engine.id] for engine in engines if engine.id in self._ready_s]
        alive = [engine for engine in engines if engine.limits and engine.id not in self._ended_s]
        ended = [self._ended_s[engine.id] for engine in engines if engine.id in self._ended_s]
        return PoolLife(
            engines_started=len(engines),
            running_rows=sum(len(engine.held) for engine in engines),
            busy_seconds=sum(engine.busy_until(now) for engine in engines),
            engines_ready=len(alive),
            engine_seconds=sum(self._ended_s.get(engine.id, now) - engine.born_s for engine in engines),
            start_s=[engine.start_s for engine in engines if engine.start_s is not None],
            first_ready_s=min(ready) - self._began_s if ready else None,
            last_ready_s=None if alive or not ended else max(ended) - self._began_s,
        )


def start_ledger(settings: LedgerSettings) -> ActorHandle[Any]:
    """Start the ledger beside the driver."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": here, "max_concurrency": 10_000}
    actor: ActorHandle[Any] = ray.remote(**options)(LedgerActor).remote(settings)
    return actor

"""The one place that knows which row is whose, and where a finished row becomes part of the output: exactly once.

Role: hand pending rows to engines that ask, take back what dead engines held, publish finished parts.
Owns: every claim on a row, and the exactly-once rule. Must not know: prompts, engines, Ray (ledger_actor.py makes an
actor of it), in which order rows are best run (ordering/), how answers look.

The scheme. Rows come in order of the input (`offer`), wait in a bounded window and go to the engine that asks
(`take`), which is then their holder. The engine writes finished rows as a part under `_staging/<run>/` and asks for it
to be published; this actor is the only one that renames into the output folder, so there is one order of commits.

1. A part is published only if its engine still holds every row in it. When an engine is lost (its process died, or it
   was silent for too long), its rows go to others; a late part of it is refused, by row, and the engine drops them.
   All or nothing: a refused part is not renamed.
2. The ledger dies with the driver's job. A new driver takes the lock and then discards `_staging` before it lists the
   parts: on a POSIX file system a rename out of a discarded folder fails, so whatever an old ledger managed to publish
   is seen by the listing and nothing can follow it. On object stores, where a put cannot be fenced, the ledger reads
   the lock before each publish and stops when another run holds it; a move already under way can still land
   (milliseconds).

A rerun needs no other memory than the parts themselves. The death of an engine costs what was running or staged.

Memory: rows in the window and in engines; nothing of rows that are committed (duplicates.py keeps its index on disk).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from batch_jobs.engines.base import EngineLimits
from batch_jobs.input.prepared import Prepared
from batch_jobs.ordering.window import Window
from batch_jobs.reporting.stats import RowStat
from batch_jobs.work.duplicates import Duplicates
from batch_jobs.work.engine_life import EngineLife, Held, Patience
from batch_jobs.work.messages import EngineReport, Orders, Work
from batch_jobs.work.suspects import Suspects
from batch_jobs.work.tail import grant, steal

ASIDE = 4
"""Windows' worth of rows that may wait outside the window for another row's answer."""
MAX_DEATHS_WITHOUT_COMMIT = 6
CRASHED = "the engine died each time it ran this row, the last time with no other row in it"


class Ledger:
    """Not thread-safe: calls come one at a time. Times are seconds of `clock`."""

    def __init__(
        self,
        window: Window,
        max_engines: int,
        dedupe: bool = True,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience = patience or Patience()
        self._window = window
        self._max_engines = max_engines
        self._clock = clock
        self._duplicates = Duplicates() if dedupe else None
        self._suspects = Suspects()
        self._ready_work: deque[Held] = deque()
        """Rows that need no engine: copies, and error rows."""
        self._moving: set[int] = set()
        """Rows of a part that is getting its name at this moment."""
        self.engines: dict[str, EngineLife] = {}
        self._seats: dict[str, str] = {}
        self._parked = 0
        self._aside_bytes = 0
        """Of rows outside the window: those that follow another, and those that need no engine."""
        self._deaths_without_commit = 0
        self._closed = False
        self.stopping = False
        self.failure: str | None = None

    # What the driver says

    @property
    def room(self) -> int:
        """Rows that may be offered now."""
        aside = self._parked + len(self._ready_work)
        full = aside >= ASIDE * self._window.max_rows or self._aside_bytes >= self._window.max_bytes
        return 0 if full else self._window.room

    def offer(self, rows: Sequence[Prepared]) -> None:
        """New pending rows, in the order of the input."""
        if self._duplicates is None:
            self._window.add(rows)
            return
        compute, copies = self._duplicates.sort(rows)
        self._parked += len(rows) - len(compute) - len(copies)
        self._aside_bytes += sum(row.size_bytes for row in rows) - sum(row.size_bytes for row in compute)
        self._window.add(compute)
        self._ready_work.extend(Held(row, copy) for row, copy in copies)

    def close(self) -> None:
        """No more rows will be offered."""
        self._closed = True
        self._window.close()

    def stop(self) -> None:
        """Ask every engine to publish what it has and start nothing more."""
        self.stopping = True

    def fail(self, message: str) -> None:
        self.failure = self.failure or message
        self.stopping = True

    @property
    def waiting(self) -> int:
        return len(self._window) + len(self._ready_work) + len(self._suspects) + self._parked

    @property
    def running(self) -> int:
        return sum(len(engine.held) for engine in self.engines.values())

    @property
    def recalled(self) -> int:
        """Rows that engines are to hand back and have not been told of."""
        return sum(engine.recall for engine in self.engines.values())

    @property
    def done(self) -> bool:
        return self._closed and not self.waiting and not self.running

    @property
    def at_rest(self) -> bool:
        """No engine will publish anything more."""
        return all(life.stopped or life.lost or life.limits is None for life in self.engines.values())

    # What engines say

    def register(self, engine: str, pool: str, seat: str) -> str | None:
        """A new engine process begins to start. One that sat in the same place before is dead; returns its id."""
        if engine in self.engines:
            raise ValueError(f"engine {engine} is known already: one process cannot begin twice")
        before = self.seat_lost(seat)
        now = self._clock()
        self.engines[engine] = EngineLife(engine, pool, seat, now, now)
        self._seats[seat] = engine
        return before

    def ready(self, engine: str, limits: EngineLimits, start_s: float) -> None:
        life = self.engines[engine]
        life.limits, life.start_s, life.seen_s = limits, start_s, self._clock()
        self._count_slots()

    def exchange(self, engine: str, report: EngineReport) -> Orders:
        """One turn with an engine that is ready."""
        life = self.engines[engine]
        life.seen_s = self._clock()
        life.report = report
        life.stopped = life.stopped or report.stopped
        self._take_back(life, report.returned)
        if report.inside is not None:
            life.unpublished = max(0, len(life.held) - report.inside)
        if life.lost:
            return Orders(lost=True)
        if self.stopping:
            return Orders(stop=True)
        # Not in the turn in which it hands rows back: they are for the one who asked for them.
        work = self._give(life, report.want) if report.want > 0 and not report.returned else []
        life.note_busy(life.seen_s)
        recall, life.recall = life.recall, 0
        return Orders(work, recall, done=self.done)

    def _take_back(self, life: EngineLife, numbers: Iterable[int]) -> None:
        returned = [number for number in numbers if number in life.held and number not in self._moving]
        self._put_back([life.held.pop(number) for number in returned])

    def _put_back(self, held: Iterable[Held]) -> None:
        rows = []
        for each in held:
            if each.runs:
                rows.append(each.row)
            else:
                self._ready_work.appendleft(each)
                self._aside_bytes += each.row.size_bytes
        if rows:
            self._window.put_back(rows)

    def _give(self, life: EngineLife, want: int) -> list[Work]:
        if life.apart and life.held:
            return []
        life.apart = False
        if not life.held and (group := self._suspects.next_group()):
            life.apart = True
            return [self._hand(life, Held(row)) for row in group]
        given: list[Work] = []
        while self._ready_work and len(given) < want:
            passing = self._ready_work.popleft()
            self._aside_bytes -= passing.row.size_bytes
            given.append(self._hand(life, passing))
        count = self._allowance(life, want - len(given))
        given.extend(self._hand(life, Held(row)) for row in self._window.take(life.id, count))
        return given

    def _hand(self, life: EngineLife, held: Held) -> Work:
        life.held[held.row.number] = held
        return Work(held.row.number, held.row.payload, held.copy, held.error)

    def _allowance(self, life: EngineLife, want: int) -> int:
        """Near the end, no engine may take rows that others would finish sooner; before, all it wants."""
        waiting = len(self._window)
        others = [other for other in self._ready() if other is not life and not other.apart]
        if not self._closed or waiting > life.report.depth + sum(other.report.depth for other in others):
            return want
        mine, paces = life.pace(), [other.pace() for other in others]
        if waiting:
            return grant(mine, paces, waiting, want)
        if want > 0 and (theft := steal(mine, paces)) is not None:
            victim, count = theft
            self.engines[victim].recall = max(self.engines[victim].recall, count)
        return 0

    def _count_slots(self) -> None:
        """The window begins its tail, longest answers first, when what is left fits the engines a last time."""
        self._window.slots = sum(life.limits.max_running for life in self._ready() if life.limits) or None

    def _ready(self) -> list[EngineLife]:
        return [life for life in self.engines.values() if life.limits is not None and not life.lost]

    # Publishing

    def refused(self, engine: str, numbers: Sequence[int]) -> list[int]:
        """Rows of a staged part that its engine does not hold; it may be published when there are none."""
        held = self.engines[engine].held
        doubled = len(set(numbers)) < len(numbers)
        return [number for number in numbers if doubled or number not in held]

    def publishing(self, numbers: Sequence[int]) -> None:
        """Until this is called with none, these rows stay with their engine."""
        self._moving = set(numbers)

    def committed(self, engine: str, part: str, stats: Sequence[RowStat]) -> None:
        """The part has its final name."""
        life = self.engines[engine]
        for stat in stats:
            row = life.held.pop(stat.number).row
            self._suspects.committed(stat.number)
            if not stat.duplicate and not stat.error:
                self._window.observe(row.input_tokens, row.output_tokens, stat.output_tokens)
                self._deaths_without_commit = 0
        life.unpublished = max(0, life.unpublished - len(stats))
        life.progress_s = self._clock()
        life.note_busy(life.progress_s)
        if self._duplicates is not None:
            free = self._duplicates.committed(part, [(stat.number, stat.id) for stat in stats])
            self._parked -= len(free)
            self._ready_work.extend(Held(row, copy) for row, copy in free)

    # Deaths

    def seat_lost(self, seat: str) -> str | None:
        """The process in this seat is gone. Returns the engine that it was."""
        engine = self._seats.pop(seat, None)
        if engine is not None:
            self._lose(self.engines[engine])
        return engine

    def lose_stuck(self) -> list[EngineLife]:
        """Give up engines that say nothing, that do not come up, or that finish nothing. Their processes must end."""
        now, done = self._clock(), self.done
        stuck = [life for life in self.engines.values() if life.is_stuck(now, self._patience, done)]
        for life in stuck:
            self._lose(life)
        return stuck

    def _lose(self, life: EngineLife) -> None:
        if life.lost:
            return
        life.lost = True
        self._count_slots()
        self._window.forget(life.id)
        # Copies and error rows never were in the engine: its death proves nothing about them.
        verdict = self._suspects.engine_died(held.row for held in life.held.values() if held.runs)
        self._put_back(held for held in life.held.values() if not held.runs)
        life.held = {}
        life.note_busy(self._clock())
        self._window.put_back(verdict.retry)
        self._ready_work.extend(Held(row, error=CRASHED) for row in verdict.convicted)
        self._aside_bytes += sum(row.size_bytes for row in verdict.convicted)
        if life.start_s is not None and not self.stopping:
            self._deaths_without_commit += 1
            if self._deaths_without_commit > self._max_engines + MAX_DEATHS_WITHOUT_COMMIT:
                self.fail(
                    f"engines died {self._deaths_without_commit} times and no row was finished in between. See the "
                    "actors' log for why (often memory: lower gpu_memory_utilization, max_num_seqs or max_model_len)."
                )

"""The one place where a finished row becomes part of the output: exactly once, whoever dies when.

Role: decide which rows still need work and give staged parts their final name. Owns: the exactly-once rule.
Must not know: prompts, engines, Ray (commit_actor.py makes an actor of it).

The scheme. Engines write a part under `_staging/<run>/` and ask this log to publish it. The log is a single actor per
run and the only one that renames into the output folder, so there is one order of commits:

1. Before work, an engine *admits* the ids of a batch: the log answers which are committed already (those are skipped)
   and notes this engine as the holder of the others. Ray Data retries a batch when an actor died, or when the block
   with its outcome is lost, and cannot tell the retry from a first try; asking about every batch needs no such
   knowledge.
2. A part is *published* only if its engine still holds every id in it. When a batch went to another engine because Ray
   thought this one dead (a partition, a stopped process), the late part is refused, by id, and the engine drops those
   rows. All or nothing: a refused part is not renamed.
3. The log dies with the driver's job. A new driver takes the lock and then discards `_staging` before it lists the
   parts: on a POSIX file system a rename out of a discarded folder fails, so whatever an old log managed to publish is
   seen by the listing and nothing can follow it. On object stores, where a put cannot be fenced, the log reads the
   lock before each publish and stops when another run holds it; a move already under way can still land
   (milliseconds).

A rerun needs no other memory than the parts themselves. Engine death costs what was running or staged, nothing that
was published.

Why not Ray Data's checkpoint: it commits when the write task of a whole block ends, so rows wait for the slowest of
their block and a kill loses every finished row of it; it wants the write to be the last operator; and its ids are in
memory too.

Memory: ids of this run's rows. Calls: one per batch, one per part, one per engine and second.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from batch_jobs.output.parts import LOCK_FILE, Totals, staged_name
from batch_jobs.storage import Storage

MAX_DEATHS_PER_ROW = 3
MAX_IDLE_STARTS = 3


class RowStat(NamedTuple):
    """What the log needs to know of a finished row."""

    id: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    error: str | None


class FencedOff(Exception):
    """Another run owns the output folder now; this one must not write."""


@dataclass
class EngineLife:
    """One engine process, from registration to its last sign of life."""

    born_s: float
    seen_s: float
    start_s: float | None = None
    stopped: bool = False


@dataclass
class Progress:
    """A snapshot for the driver."""

    totals: Totals
    engines_started: int
    engine_seconds: float
    engine_start_s: list[float]
    stopped: bool
    failure: str | None


@dataclass
class _Claim:
    engine: str
    deaths: int = 0


@dataclass
class CommitLog:
    """Not thread-safe: calls come one at a time."""

    storage: Storage
    run_id: str
    max_engines: int
    clock: Callable[[], float] = time.monotonic
    _done: set[str] = field(default_factory=set)
    _claims: dict[str, _Claim] = field(default_factory=dict)
    _engines: dict[str, EngineLife] = field(default_factory=dict)
    _totals: Totals = field(default_factory=Totals)
    _stopping: bool = False
    _failure: str | None = None
    _starts_since_commit: int = 0

    def register(self, engine: str) -> None:
        """A new engine process begins to start."""
        now = self.clock()
        self._engines[engine] = EngineLife(now, now)
        self._starts_since_commit += 1
        if self._starts_since_commit > self.max_engines + MAX_IDLE_STARTS:
            self.fail(
                f"{self._starts_since_commit} engines were started and none finished a row. See the actors' log for "
                "why the engine dies (often memory: lower gpu_memory_utilization, max_num_seqs or max_model_len)."
            )

    def ready(self, engine: str, start_s: float) -> None:
        self._engines[engine].start_s = start_s
        self.beat(engine)

    def beat(self, engine: str, stopped: bool = False) -> bool:
        """A sign of life; the answer is whether to stop. `stopped` confirms that everything finished was published."""
        life = self._engines[engine]
        life.seen_s = self.clock()
        life.stopped = life.stopped or stopped
        return self._stopping

    def admit(self, engine: str, ids: Sequence[str]) -> list[str]:
        """Claim rows for an engine. Returns the ids that are committed already."""
        done = []
        for row_id in ids:
            if row_id in self._done:
                done.append(row_id)
                continue
            claim = self._claims.setdefault(row_id, _Claim(engine))
            if claim.engine != engine:
                claim.engine, claim.deaths = engine, claim.deaths + 1
        self._check_deaths(ids)
        return done

    def _check_deaths(self, ids: Sequence[str]) -> None:
        """A row that is always there when an engine dies must not be retried for ever: each try costs real money."""
        if any(i in self._claims and self._claims[i].deaths >= MAX_DEATHS_PER_ROW for i in ids):
            # The first row to come back need not be the one at fault: others of the last death are still on their way.
            suspects = [i for i, claim in self._claims.items() if claim.deaths >= MAX_DEATHS_PER_ROW - 1]
            shown = ", ".join(repr(row_id) for row_id in suspects[:10])
            self.fail(
                f"the engine died {MAX_DEATHS_PER_ROW} times while these rows were in it: {shown}. "
                "Remove or shorten the row at fault, or see the actors' log; a rerun continues with the rest."
            )

    def publish(self, engine: str, part: str, stats: Sequence[RowStat]) -> list[str]:
        """Commit a staged part. Returns the ids that make it unacceptable; then nothing was committed."""
        refused = [stat.id for stat in stats if not self._holds(engine, stat.id)]
        if refused:
            return refused
        if not self._owns_output():
            self.fail("another run has taken over this output")
            raise FencedOff(self._failure)
        self.storage.move(staged_name(self.run_id, part), part)
        for stat in stats:
            self._done.add(stat.id)
            self._claims.pop(stat.id, None)
            self._totals.add(stat.prompt_tokens, stat.cached_tokens, stat.output_tokens, stat.error)
        self._starts_since_commit = 0
        return []

    def _holds(self, engine: str, row_id: str) -> bool:
        claim = self._claims.get(row_id)
        return claim is not None and claim.engine == engine

    def _owns_output(self) -> bool:
        try:
            return bool(json.loads(self.storage.read(LOCK_FILE))["run_id"] == self.run_id)
        except FileNotFoundError:
            return False

    def fail(self, message: str) -> None:
        self._failure = self._failure or message
        self._stopping = True

    def stop(self) -> None:
        """Ask every engine to publish what it has and start nothing more."""
        self._stopping = True

    def progress(self) -> Progress:
        lives = list(self._engines.values())
        return Progress(
            totals=self._totals,
            engines_started=len(lives),
            engine_seconds=sum(life.seen_s - life.born_s for life in lives),
            engine_start_s=[life.start_s for life in lives if life.start_s is not None],
            stopped=all(life.stopped or life.start_s is None for life in lives),
            failure=self._failure,
        )

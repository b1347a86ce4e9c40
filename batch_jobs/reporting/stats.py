"""What a run did so far, per pool.

Role: add up finished rows where they are committed; the sums travel to the driver for every look at the run. Owns: what
is counted, and how. Must not know: Ray, files, who shows the numbers.

Bounded in size (some 20 KB a pool, whatever the number of rows), as it is pickled twice a second. A duplicate, a row
that got another row's answer, counts as a row and never as tokens: nothing was computed for it. Distributions are those
of rows that an engine answered: neither duplicates nor error rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple

from batch_jobs.output.parts import Totals
from batch_jobs.reporting.histogram import Histogram
from batch_jobs.reporting.timeline import Timeline

MAX_ERROR_KINDS = 64
OTHER_ERRORS = "other"


class RowStat(NamedTuple):
    """One finished row, without its content."""

    number: int
    id: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    error: str | None
    """The kind of its error."""
    seconds: float
    """From the row's start in an engine to its end."""
    duplicate: bool = False


@dataclass
class PoolStats:
    """The rows of one pool."""

    totals: Totals = field(default_factory=Totals)
    timeline: Timeline = field(default_factory=Timeline)
    seconds: Histogram = field(default_factory=Histogram)
    prompt_tokens: Histogram = field(default_factory=Histogram)
    output_tokens: Histogram = field(default_factory=Histogram)
    last_active_s: float | None = None
    """When its last row finished, in seconds since the run began."""

    @property
    def rows(self) -> int:
        return self.totals.rows

    @property
    def tokens(self) -> int:
        """Computed and cached input, and output."""
        return self.totals.prompt_tokens + self.totals.output_tokens

    def record(self, at_s: float, stats: Sequence[RowStat]) -> None:
        if not stats:
            return
        for stat in stats:
            self._count(stat)
        computed = [stat for stat in stats if not stat.duplicate]
        prompt = sum(stat.prompt_tokens for stat in computed)
        self.timeline.add(at_s, len(stats), prompt, sum(stat.output_tokens for stat in computed))
        if computed:
            self.last_active_s = max(at_s, self.last_active_s or 0.0)

    def _count(self, stat: RowStat) -> None:
        totals = self.totals
        totals.rows += 1
        if stat.error is not None:
            known = stat.error in totals.errors or len(totals.errors) < MAX_ERROR_KINDS
            kind = stat.error if known else OTHER_ERRORS
            totals.errors[kind] = totals.errors.get(kind, 0) + 1
        if stat.duplicate:
            totals.duplicates += 1
            return
        totals.prompt_tokens += stat.prompt_tokens
        totals.cached_tokens += stat.cached_tokens
        totals.output_tokens += stat.output_tokens
        if stat.error is None:
            self.seconds.add(stat.seconds)
            self.prompt_tokens.add(stat.prompt_tokens)
            self.output_tokens.add(stat.output_tokens)


class RunStats:
    """All pools of one run. Timelines of all pools have buckets of one width."""

    def __init__(self, pools: Sequence[str]) -> None:
        self.pools: dict[str, PoolStats] = {name: PoolStats() for name in pools}

    def record(self, pool: str, at_s: float, stats: Sequence[RowStat]) -> None:
        """`at_s`: seconds since the run began."""
        self.pools[pool].record(at_s, stats)
        width_s = self.width_s
        for each in self.pools.values():
            while each.timeline.width_s < width_s:
                each.timeline.widen()

    @property
    def width_s(self) -> float:
        return max((pool.timeline.width_s for pool in self.pools.values()), default=Timeline().width_s)

    def totals(self) -> Totals:
        return reduce(Totals.plus, (pool.totals for pool in self.pools.values()), Totals())

    def histogram(self, name: str) -> Histogram:
        """`seconds`, `prompt_tokens` or `output_tokens` over all pools."""
        return reduce(Histogram.plus, (getattr(pool, name) for pool in self.pools.values()), Histogram())

    @property
    def last_active_s(self) -> float | None:
        return max((p.last_active_s for p in self.pools.values() if p.last_active_s is not None), default=None)


@dataclass
class PoolLife:
    """The engine processes of one pool in this run, told by whoever starts and stops them."""

    engines_started: int = 0
    """Engine processes started so far, replacements included."""
    engines_ready: int = 0
    """Of those, how many can take rows now."""
    engine_seconds: float = 0.0
    """Lives of all its engine processes, starts included; this is what is paid."""
    start_s: list[float] = field(default_factory=list)
    """How long each engine that became ready took to do so."""
    busy_seconds: float | None = None
    """Of `engine_seconds`, those in which the engine had at least one row; None where nobody measures it."""
    running_rows: int = 0
    """Rows that its engines have now."""
    first_ready_s: float | None = None
    """When its first engine became ready, in seconds since the run began."""
    last_ready_s: float | None = None
    """When its last engine was stopped; None while it has one, or if it had one until the run's end."""


@dataclass
class Progress:
    """One look at a run, as the driver gets it."""

    stats: RunStats
    lives: dict[str, PoolLife]
    stopped: bool = False
    """Nothing more will happen in this run."""
    failure: str | None = None
    """Why it stopped before its end."""
    waiting_rows: int = 0
    """Rows known to the run that no engine has."""
    running_rows: int = 0
    """Rows that engines have."""

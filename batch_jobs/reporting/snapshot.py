"""The numbers of one look at a running job.

Role: turn sums into rates, an ETA and a cost. Owns: the fields of _progress.json. Must not know: who shows them.

Rates are those of the last half minute; while nothing finished in it (parts of long rows come in bursts), the ETA uses
the mean since the first row. The cost is each pool's hourly price times the lives of its engine processes so far.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from batch_jobs.reporting.stats import PoolLife, Progress, RunStats

RATE_WINDOW_S = 30.0


class Rates(NamedTuple):
    """Per second."""

    rows: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0


class RateMeter:
    """Remembers the sums of the last half minute."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, dict[str, Rates]]] = deque()
        self._begin: tuple[float, int] | None = None

    def add(self, now_s: float, stats: RunStats) -> None:
        sums = {name: _sums(stats, name) for name in stats.pools}
        self._samples.append((now_s, sums))
        while self._samples[0][0] < now_s - RATE_WINDOW_S:
            self._samples.popleft()
        rows = _rows(sums)
        if self._begin is None or not rows:
            self._begin = (now_s, rows)

    def pool(self, name: str) -> Rates:
        (first_s, first), (last_s, last) = self._samples[0], self._samples[-1]
        if last_s <= first_s:
            return Rates()
        before, after = first.get(name, Rates()), last.get(name, Rates())
        return Rates(*((b - a) / (last_s - first_s) for a, b in zip(before, after, strict=True)))

    def rows_per_s(self) -> float:
        """For the ETA: of the last half minute, or else since the first row."""
        last_s, sums = self._samples[-1]
        recent = sum(self.pool(name).rows for name in sums)
        if recent or self._begin is None or last_s <= self._begin[0]:
            return recent
        return (_rows(sums) - self._begin[1]) / (last_s - self._begin[0])


def _sums(stats: RunStats, pool: str) -> Rates:
    totals = stats.pools[pool].totals
    return Rates(totals.rows, totals.prompt_tokens, totals.output_tokens)


def _rows(sums: Mapping[str, Rates]) -> int:
    return int(sum(each.rows for each in sums.values()))


@dataclass(frozen=True)
class PoolSnapshot:
    name: str
    rows: int
    running_rows: int
    engines_ready: int
    engines_started: int
    input_tokens_per_s: float
    output_tokens_per_s: float
    errors: int
    usd: float


@dataclass(frozen=True)
class Snapshot:
    """_progress.json. `rows_done` is of the whole output, earlier runs included; the rest is of this run."""

    rows_total: int
    rows_done: int
    rows_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    running_rows: int
    waiting_rows: int
    errors: int
    duplicates: int
    eta_s: float | None
    usd: float
    stopped: bool
    failure: str | None
    pools: list[PoolSnapshot]

    @property
    def engines_ready(self) -> int:
        return sum(pool.engines_ready for pool in self.pools)

    @property
    def engines_started(self) -> int:
        return sum(pool.engines_started for pool in self.pools)

    def as_json(self, updated_unix_s: float | None = None) -> dict[str, Any]:
        """With the moment it was written, so that readers see whether the job still lives."""
        return asdict(self) | {"updated_unix_s": time.time() if updated_unix_s is None else updated_unix_s}


def take_snapshot(
    progress: Progress, meter: RateMeter, total_rows: int, done_rows: int, prices: Mapping[str, float]
) -> Snapshot:
    """`done_rows`: rows that earlier runs committed; `prices`: dollars an hour of one engine, by pool."""
    totals = progress.stats.totals()
    pools = [_pool(progress, meter, name, prices.get(name, 0.0)) for name in progress.stats.pools]
    done = done_rows + totals.rows
    left, rows_per_s = max(total_rows - done, 0), meter.rows_per_s()
    return Snapshot(
        rows_total=total_rows,
        rows_done=done,
        rows_per_s=round(rows_per_s, 3),
        input_tokens_per_s=round(sum(pool.input_tokens_per_s for pool in pools), 3),
        output_tokens_per_s=round(sum(pool.output_tokens_per_s for pool in pools), 3),
        running_rows=progress.running_rows,
        waiting_rows=progress.waiting_rows,
        errors=totals.error_rows,
        duplicates=totals.duplicates,
        eta_s=0.0 if not left else round(left / rows_per_s, 1) if rows_per_s else None,
        usd=round(sum(pool.usd for pool in pools), 6),
        stopped=progress.stopped,
        failure=progress.failure,
        pools=pools,
    )


def _pool(progress: Progress, meter: RateMeter, name: str, usd_per_hour: float) -> PoolSnapshot:
    life = progress.lives.get(name, PoolLife())
    totals, rates = progress.stats.pools[name].totals, meter.pool(name)
    return PoolSnapshot(
        name=name,
        rows=totals.rows,
        running_rows=life.running_rows,
        engines_ready=life.engines_ready,
        engines_started=life.engines_started,
        input_tokens_per_s=round(rates.input_tokens, 3),
        output_tokens_per_s=round(rates.output_tokens, 3),
        errors=totals.error_rows,
        usd=round(usd_per_hour * life.engine_seconds / 3600, 6),
    )

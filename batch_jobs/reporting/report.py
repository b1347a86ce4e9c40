"""The result of a job: report.json and the tables on the screen.

Role: turn sums into the numbers people ask for. Owns: the fields of report.json. Must not know: how rows were done.

Two scopes: `rows`, `ok`, `errors`, `duplicates` and `tokens` describe the whole output, with what earlier runs
committed; `run` and `pools` are this run alone, as time and money can only be told for it. `usd` is a pool's hourly
price times the life of every engine process in it, its start included; `usd_per_mtok` divides it by all prompt and
output tokens. A pool's `tokens_per_s` is over the time it could work: from its first ready engine to its last row.
`tail_idle_s` is how long it then stood ready while other pools still worked; its share is of all its ready time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batch_jobs.output.parts import Totals
from batch_jobs.reporting import wording
from batch_jobs.reporting.stats import PoolLife, PoolStats, RunStats

PER_MILLION = 1e6


@dataclass(frozen=True)
class PoolReport:
    name: str
    rows: int
    errors: int
    duplicates: int
    tokens: dict[str, int]
    tokens_per_s: float
    engines: int
    """Engine processes started, replacements included."""
    engine_start_s: list[float]
    engine_seconds: float
    busy_seconds: float | None
    usd_per_hour: float
    usd: float
    usd_per_mtok: float | None
    tail_idle_s: float
    tail_idle_share: float


@dataclass(frozen=True)
class RunReport:
    """One run of the job, from the first engine's start to the last commit."""

    rows: int
    tokens: dict[str, int]
    seconds: float
    tokens_per_s: float
    engines_started: int
    engine_start_s: list[float]
    engine_seconds: float
    usd: float
    usd_per_mtok: float | None
    row_seconds: dict[str, Any]
    """Quantiles over the rows that engines answered; likewise the next two."""
    prompt_tokens: dict[str, Any]
    output_tokens: dict[str, Any]
    timeline: dict[str, Any]
    """`width_s` of a bucket, and per pool the rows and tokens of each bucket."""


@dataclass(frozen=True)
class Report:
    """report.json."""

    rows_total: int
    rows: int
    ok: int
    errors: dict[str, int]
    duplicates: int
    tokens: dict[str, int]
    complete: bool
    model: str
    task: str
    run_id: str
    run: RunReport
    pools: list[PoolReport]
    config: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def make_report(
    *, model: str, task: str, run_id: str, rows_total: int, committed: Totals, stats: RunStats,
    lives: Mapping[str, PoolLife], prices: Mapping[str, float], seconds: float, config: dict[str, Any] | None = None,
) -> Report:  # fmt: skip
    """`committed`: sums of the whole output; `prices`: dollars an hour of one engine, by pool."""
    pools = [
        pool_report(name, pool, lives.get(name, PoolLife()), prices.get(name, 0.0), stats.last_active_s)
        for name, pool in stats.pools.items()
    ]
    return Report(
        rows_total=rows_total,
        rows=committed.rows,
        ok=committed.ok,
        errors=dict(sorted(committed.errors.items(), key=lambda item: (-item[1], item[0]))),
        duplicates=committed.duplicates,
        tokens=token_counts(committed),
        complete=committed.rows == rows_total,
        model=model,
        task=task,
        run_id=run_id,
        run=run_report(stats, pools, seconds),
        pools=pools,
        config=config or {},
    )


def token_counts(totals: Totals) -> dict[str, int]:
    return {"input": totals.prompt_tokens, "cached_input": totals.cached_tokens, "output": totals.output_tokens}


def run_report(stats: RunStats, pools: list[PoolReport], seconds: float) -> RunReport:
    totals = stats.totals()
    tokens = totals.prompt_tokens + totals.output_tokens
    usd = sum(pool.usd for pool in pools)
    timelines = {name: pool.timeline.as_json() for name, pool in stats.pools.items()}
    return RunReport(
        rows=totals.rows,
        tokens=token_counts(totals),
        seconds=round(seconds, 3),
        tokens_per_s=round(tokens / seconds, 3) if seconds else 0.0,
        engines_started=sum(pool.engines for pool in pools),
        engine_start_s=[start_s for pool in pools for start_s in pool.engine_start_s],
        engine_seconds=round(sum(pool.engine_seconds for pool in pools), 3),
        usd=round(usd, 6),
        usd_per_mtok=_usd_per_mtok(usd, tokens),
        row_seconds=stats.histogram("seconds").as_json(),
        prompt_tokens=stats.histogram("prompt_tokens").as_json(),
        output_tokens=stats.histogram("output_tokens").as_json(),
        timeline={
            "width_s": stats.width_s,
            "pools": {name: {k: v for k, v in values.items() if k != "width_s"} for name, values in timelines.items()},
        },
    )


def pool_report(
    name: str, stats: PoolStats, life: PoolLife, usd_per_hour: float, run_end_s: float | None
) -> PoolReport:
    """`run_end_s`: when the last row of any pool finished."""
    usd = usd_per_hour * life.engine_seconds / 3600
    worked_s = working_seconds(stats, life)
    idle_s = _tail_idle(stats, life, run_end_s)
    ready_s = _ready_end(life, run_end_s) - life.first_ready_s if life.first_ready_s is not None else 0.0
    return PoolReport(
        name=name,
        rows=stats.rows,
        errors=stats.totals.error_rows,
        duplicates=stats.totals.duplicates,
        tokens=token_counts(stats.totals),
        tokens_per_s=round(stats.tokens / worked_s, 3) if worked_s else 0.0,
        engines=life.engines_started,
        engine_start_s=[round(start_s, 3) for start_s in life.start_s],
        engine_seconds=round(life.engine_seconds, 3),
        busy_seconds=None if life.busy_seconds is None else round(life.busy_seconds, 3),
        usd_per_hour=usd_per_hour,
        usd=round(usd, 6),
        usd_per_mtok=_usd_per_mtok(usd, stats.tokens),
        tail_idle_s=round(idle_s, 3),
        tail_idle_share=round(idle_s / ready_s, 4) if ready_s > 0 else 0.0,
    )


def working_seconds(stats: PoolStats, life: PoolLife) -> float:
    """From the first ready engine (or the run's beginning, if that is not known) to the last finished row."""
    if stats.last_active_s is None:
        return 0.0
    return max(stats.last_active_s - (life.first_ready_s or 0.0), 0.0)


def _tail_idle(stats: PoolStats, life: PoolLife, run_end_s: float | None) -> float:
    if life.first_ready_s is None:
        return 0.0
    last_s = life.first_ready_s if stats.last_active_s is None else stats.last_active_s
    return max(_ready_end(life, run_end_s) - last_s, 0.0)


def _ready_end(life: PoolLife, run_end_s: float | None) -> float:
    """When the pool stopped being able to help: its engines were gone, or all the work was done."""
    ends_s = [end_s for end_s in (life.last_ready_s, run_end_s) if end_s is not None]
    return min(ends_s, default=life.first_ready_s or 0.0)


def _usd_per_mtok(usd: float, tokens: int) -> float | None:
    return round(usd / tokens * PER_MILLION, 6) if tokens and usd else None


def print_report(console: Console, report: Report) -> None:
    run = report.run
    table = Table(title=Text(f"{report.model}: {report.rows} of {report.rows_total} rows"), show_header=False)
    rows = [
        ("ok", str(report.ok)),
        ("errors", ", ".join(f"{kind} {count}" for kind, count in report.errors.items()) or "0"),
        ("duplicates", str(report.duplicates)),
        ("tokens in / cached / out", " / ".join(str(count) for count in report.tokens.values())),
        ("this run", f"{run.rows} rows in {wording.duration(run.seconds)}, {run.tokens_per_s:.0f} tokens/s"),
        ("seconds per row", _quantiles(run)),
        ("engine start", ", ".join(wording.duration(start_s) for start_s in run.engine_start_s[:8]) or "-"),
        ("cost", _cost(run)),
    ]
    for name, value in rows:
        table.add_row(name, Text(value))
    console.print(table)
    if len(report.pools) > 1:
        console.print(_pool_table(report.pools))


def _pool_table(pools: list[PoolReport]) -> Table:
    table = Table(title="Pools in this run")
    table.add_column("pool")
    for name in ("rows", "tokens/s", "engines", "engine time", "cost", "$/Mtok", "idle at the end"):
        table.add_column(name, justify="right")
    for pool in pools:
        table.add_row(
            Text(pool.name),
            str(pool.rows),
            wording.rate(pool.tokens_per_s),
            str(pool.engines),
            wording.duration(pool.engine_seconds),
            wording.usd(pool.usd) if pool.usd else "-",
            wording.usd(pool.usd_per_mtok),
            f"{wording.duration(pool.tail_idle_s)} ({wording.percent(pool.tail_idle_share)})",
        )
    return table


def _quantiles(run: RunReport) -> str:
    values = run.row_seconds
    if not values["count"]:
        return "-"
    return ", ".join(f"{name} {wording.duration(values[name])}" for name in ("p50", "p90", "p99", "max"))


def _cost(run: RunReport) -> str:
    if not run.usd:
        return "- (no pool has usd_per_hour)"
    if run.usd_per_mtok is None:
        return wording.usd(run.usd)
    return f"{wording.usd(run.usd)}, {wording.usd(run.usd_per_mtok)} per million tokens"

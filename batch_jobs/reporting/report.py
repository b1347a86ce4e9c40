"""The result of a job: report.json and the table on the screen.

Role: turn sums into the numbers people ask for. Owns: the fields of report.json. Must not know: how rows were done.

Two scopes: `rows`, `ok`, `errors` and `tokens` describe the whole output, with what earlier runs committed; `run` is
this run alone, as time and money can only be told for it. `usd` is the pool's hourly price times the life of every
engine process, its start included; `usd_per_mtok` divides it by all prompt and output tokens of the run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from batch_jobs.output.parts import Totals


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


@dataclass(frozen=True)
class Report:
    """report.json."""

    rows_total: int
    rows: int
    ok: int
    errors: dict[str, int]
    tokens: dict[str, int]
    complete: bool
    model: str
    run_id: str
    run: RunReport
    config: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def token_counts(totals: Totals) -> dict[str, int]:
    return {"input": totals.prompt_tokens, "cached_input": totals.cached_tokens, "output": totals.output_tokens}


def run_report(
    totals: Totals, seconds: float, engine_start_s: list[float], engines_started: int, engine_seconds: float,
    usd_per_hour: float,
) -> RunReport:  # fmt: skip
    tokens = totals.prompt_tokens + totals.output_tokens
    usd = usd_per_hour * engine_seconds / 3600
    return RunReport(
        rows=totals.rows,
        tokens=token_counts(totals),
        seconds=round(seconds, 3),
        tokens_per_s=round(tokens / seconds, 3) if seconds else 0.0,
        engines_started=engines_started,
        engine_start_s=[round(start_s, 3) for start_s in engine_start_s],
        engine_seconds=round(engine_seconds, 3),
        usd=round(usd, 6),
        usd_per_mtok=round(usd / tokens * 1e6, 6) if tokens else None,
    )


def print_report(console: Console, report: Report) -> None:
    run = report.run
    table = Table(title=f"{report.model}: {report.rows} of {report.rows_total} rows", show_header=False)
    rows = [
        ("ok", str(report.ok)),
        ("errors", ", ".join(f"{kind} {count}" for kind, count in sorted(report.errors.items())) or "0"),
        ("tokens in / cached / out", " / ".join(str(report.tokens[kind]) for kind in report.tokens)),
        ("this run", f"{run.rows} rows in {run.seconds:.1f} s, {run.tokens_per_s:.0f} tokens/s"),
        ("engine start", ", ".join(f"{start_s:.1f} s" for start_s in run.engine_start_s) or "-"),
        ("cost", _cost(run)),
    ]
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)


def _cost(run: RunReport) -> str:
    if not run.usd or run.usd_per_mtok is None:
        return "- (the pool has no usd_per_hour)" if not run.usd else f"${run.usd:.4f}"
    return f"${run.usd:.4f}, ${run.usd_per_mtok:.4f} per million tokens"

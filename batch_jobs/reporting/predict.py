"""Time and cost of a whole job, from a run over a sample of its rows.

Role: the arithmetic of `--dry-run`. Owns: the formulas below. Must not know: how rows were sampled or run.

Tokens. All rows hold N x (mean of the sample) tokens. The 95 % interval is mean +- t s / sqrt(n) x sqrt(1 - n/N), times
N: Student's t for n - 1 degrees of freedom, s the sample's standard deviation, and the correction for drawing n of N
rows without putting them back. Error rows and duplicates are rows with the tokens that they cost (mostly none).

Time. A pool's rate is tokens per second from its first ready engine to its last row, per engine, times the engines
planned. All pools work together, pool p from its start s_p on, so the wall time T solves
sum_p rate_p x max(0, T - s_p) = tokens. Every engine is paid until T: usd = sum_p engines_p x price_p x T / 3600.

A small sample never fills an engine's batch for long, so real runs tend to be faster than predicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist, fmean
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batch_jobs.errors import JobRefused
from batch_jobs.reporting import wording
from batch_jobs.reporting.histogram import Histogram
from batch_jobs.reporting.report import working_seconds
from batch_jobs.reporting.stats import PoolLife, RunStats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Range:
    """A value and where it lies with 95 % confidence; no bounds when one row says nothing about the spread."""

    value: float
    low: float | None
    high: float | None

    def map(self, rising: Callable[[float], float]) -> Range:
        low, high = (None if bound is None else rising(bound) for bound in (self.low, self.high))
        return Range(rising(self.value), low, high)

    def plus(self, other: Range) -> Range:
        """Bounds add up, as for values that rise together: never too narrow."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return Range(self.value + other.value, None, None)
        return Range(self.value + other.value, self.low + other.low, self.high + other.high)


@dataclass(frozen=True)
class PoolPrediction:
    name: str
    engines: int
    start_s: float
    tokens_per_s: float
    """Of all its engines; 0 if the sample did not measure the pool."""
    share: float
    """Of the job's tokens."""
    usd_per_hour: float
    usd: float


@dataclass(frozen=True)
class Prediction:
    rows: int
    sample_rows: int
    sample_errors: dict[str, int]
    input_tokens: Range
    output_tokens: Range
    seconds: Range
    """Wall time, start of engines included."""
    tokens_per_s: float
    """All pools together, once they are ready."""
    usd: Range
    usd_per_mtok: float | None
    pools: list[PoolPrediction]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Plan:
    """What is known of each pool before the tokens are known."""

    name: str
    engines: int
    start_s: float
    rate: float
    usd_per_hour: float

    def tokens_by(self, seconds: float) -> float:
        return self.rate * max(seconds - self.start_s, 0.0)

    def usd_until(self, seconds: float) -> float:
        return self.engines * self.usd_per_hour * seconds / 3600


def predict(
    stats: RunStats, lives: Mapping[str, PoolLife], rows: int, engines: Mapping[str, int], prices: Mapping[str, float]
) -> Prediction:
    """`stats` and `lives` of the sample's run; `rows` of the whole job; `engines` planned and `prices` (dollars an hour
    of one engine) by pool. Raises JobRefused when the sample shows no rate."""
    totals = stats.totals()
    plans = [_plan(stats, lives, name, count, prices.get(name, 0.0)) for name, count in engines.items() if count]
    tokens = totals.prompt_tokens + totals.output_tokens
    if not tokens or not any(plan.rate for plan in plans):
        errors = ", ".join(f"{kind} {count}" for kind, count in totals.errors.items()) or "none"
        raise JobRefused(
            f"nothing can be predicted: of {totals.rows} sampled rows none was answered (errors: {errors}). "
            "Correct the rows or the job, or sample more rows."
        )
    input_tokens = _extrapolate(stats.histogram("prompt_tokens"), totals.prompt_tokens, totals.rows, rows)
    output_tokens = _extrapolate(stats.histogram("output_tokens"), totals.output_tokens, totals.rows, rows)
    work = input_tokens.value + output_tokens.value
    seconds = input_tokens.plus(output_tokens).map(lambda amount: wall_seconds(plans, amount))
    usd = seconds.map(lambda until_s: sum(plan.usd_until(until_s) for plan in plans))
    return Prediction(
        rows=rows,
        sample_rows=totals.rows,
        sample_errors=dict(totals.errors),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        seconds=seconds,
        tokens_per_s=sum(plan.rate for plan in plans),
        usd=usd,
        usd_per_mtok=usd.value / work * 1e6 if usd.value and work else None,
        pools=[_pool(plan, seconds.value, work) for plan in plans],
    )


def _plan(stats: RunStats, lives: Mapping[str, PoolLife], name: str, engines: int, usd_per_hour: float) -> _Plan:
    life = lives.get(name, PoolLife())
    measured = stats.pools.get(name)
    worked_s = working_seconds(measured, life) if measured is not None else 0.0
    rate = measured.tokens / worked_s / max(len(life.start_s), 1) if measured is not None and worked_s else 0.0
    return _Plan(name, engines, fmean(life.start_s) if life.start_s else 0.0, rate * engines, usd_per_hour)


def _pool(plan: _Plan, seconds: float, work: float) -> PoolPrediction:
    return PoolPrediction(
        name=plan.name,
        engines=plan.engines,
        start_s=plan.start_s,
        tokens_per_s=plan.rate,
        share=plan.tokens_by(seconds) / work if work else 0.0,
        usd_per_hour=plan.usd_per_hour,
        usd=plan.usd_until(seconds),
    )


def wall_seconds(plans: Sequence[_Plan], tokens: float) -> float:
    """When plans, each from its start on, have done `tokens`; the sum of their work is piecewise linear in time."""
    rate, at_s, done = 0.0, 0.0, 0.0
    for plan in sorted(plans, key=lambda plan: plan.start_s):
        if rate and done + rate * (plan.start_s - at_s) >= tokens:
            break
        done += rate * (plan.start_s - at_s)
        at_s = plan.start_s
        rate += plan.rate
    return at_s + (tokens - done) / rate if rate else at_s


def _extrapolate(computed: Histogram, tokens: int, sample: int, rows: int) -> Range:
    """Tokens of all rows. `computed` knows the spread of answered rows; the rest of the sample counts as zero."""
    mean = tokens / sample
    value = mean * rows
    if sample >= rows:
        return Range(value, value, value)
    if sample < 2:
        return Range(value, None, None)
    variance = max(computed.squares / sample - mean * mean, 0.0) * sample / (sample - 1)
    half = _student_t(sample - 1) * math.sqrt(variance / sample * (1 - sample / rows)) * rows
    return Range(value, max(value - half, 0.0), value + half)


def _student_t(freedom: int) -> float:
    """The two-sided 95 % quantile, by Cornish and Fisher's expansion (off by 1 % at 3 degrees of freedom)."""
    exact = {1: 12.706, 2: 4.303}
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return exact.get(freedom, z + first / freedom + second / freedom**2 + third / freedom**3)


def print_prediction(console: Console, prediction: Prediction) -> None:
    table = Table(title=Text(f"Predicted for {prediction.rows} rows, from {prediction.sample_rows}"), show_header=False)
    errors = ", ".join(f"{kind} {count}" for kind, count in prediction.sample_errors.items())
    rows = [
        ("tokens in", _words(prediction.input_tokens, wording.count)),
        ("tokens out", _words(prediction.output_tokens, wording.count)),
        ("time", _words(prediction.seconds, wording.duration)),
        ("speed", f"{wording.rate(prediction.tokens_per_s)} tokens/s in and out"),
        ("cost", _words(prediction.usd, wording.usd) if prediction.usd.value else "- (no pool has usd_per_hour)"),
        ("$/Mtok", wording.usd(prediction.usd_per_mtok)),
        ("errors in the sample", errors or "0"),
    ]
    for name, value in rows:
        table.add_row(name, Text(value))
    console.print(table)
    console.print(_pool_table(prediction.pools))


def _words(value: Range, write: Callable[[float], str]) -> str:
    if value.low is None or value.high is None:
        return f"{write(value.value)} (one row says nothing about the spread)"
    return f"{write(value.value)} ({write(value.low)} to {write(value.high)})"


def _pool_table(pools: list[PoolPrediction]) -> Table:
    table = Table(title="Pools")
    table.add_column("pool")
    for name in ("engines", "start", "tokens/s", "share", "cost"):
        table.add_column(name, justify="right")
    for pool in pools:
        table.add_row(
            Text(pool.name),
            str(pool.engines),
            wording.duration(pool.start_s),
            wording.rate(pool.tokens_per_s) if pool.tokens_per_s else "not measured",
            wording.percent(pool.share),
            wording.usd(pool.usd) if pool.usd else "-",
        )
    return table

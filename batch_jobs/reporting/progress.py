"""What a person sees while a job runs.

Role: a live view in a terminal, a plain line every few seconds in a log. Owns: the wording and how often.
Must not know: where the numbers come from (snapshot.py computes them).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from batch_jobs.reporting import wording
from batch_jobs.reporting.snapshot import PoolSnapshot, RateMeter, Snapshot, take_snapshot
from batch_jobs.reporting.stats import Progress

LOG_EVERY_S = 5.0


class ProgressView:
    """Use as a context; `show` takes one look at the run."""

    def __init__(
        self, console: Console, total_rows: int, done_rows: int, prices: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`done_rows`: what earlier runs committed. `prices`: dollars an hour of one engine, by pool."""
        self._console = console
        self._total = total_rows
        self._done_before = done_rows
        self._prices = dict(prices or {})
        self._clock = clock
        self._meter = RateMeter()
        self._logged_s = clock()
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> ProgressView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: Progress) -> Snapshot:
        """Draw it; returns the numbers, for _progress.json."""
        now_s = self._clock()
        self._meter.add(now_s, progress.stats)
        look = take_snapshot(progress, self._meter, self._total, self._done_before, self._prices)
        if self._live is not None:
            self._live.update(live_view(look), refresh=True)
        elif now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            self._console.print(log_line(look), highlight=False, soft_wrap=True, markup=False)
        return look


def log_line(look: Snapshot) -> str:
    """For example `rows 512/10000 (5.1 %) | tokens/s in 4100 out 820 | running 64 | errors 3 | ETA 00:03:10 | $0.12`.

    With several pools these follow in brackets: `[l4 1/1 engines, 96 rows, in 700 out 140; h100 2/2 engines, ...]`.
    """
    words = [_rows(look)]
    if not look.engines_ready and not look.rows_per_s:
        words.append(f"engines {look.engines_ready}/{look.engines_started} ready")
    else:
        words.append(f"tokens/s {_tokens_per_s(look)}")
        words.append(f"running {look.running_rows}")
    words += [part for part in (f"errors {look.errors}", _duplicates(look), f"ETA {wording.clock(look.eta_s)}") if part]
    if look.usd:
        words.append(wording.usd(look.usd))
    if len(look.pools) > 1:
        words.append("[" + "; ".join(_pool_words(pool) for pool in look.pools) + "]")
    if look.failure:
        words.append(f"stopped: {look.failure}")
    return " | ".join(words)


def _rows(look: Snapshot) -> str:
    share = look.rows_done / look.rows_total if look.rows_total else 1.0
    return f"rows {look.rows_done}/{look.rows_total} ({wording.percent(share)})"


def _tokens_per_s(look: Snapshot | PoolSnapshot) -> str:
    return f"in {wording.rate(look.input_tokens_per_s)} out {wording.rate(look.output_tokens_per_s)}"


def _duplicates(look: Snapshot) -> str:
    return f"duplicates {look.duplicates}" if look.duplicates else ""


def _pool_words(pool: PoolSnapshot) -> str:
    return f"{pool.name} {pool.engines_ready}/{pool.engines_started} engines, {pool.rows} rows, {_tokens_per_s(pool)}"


def live_view(look: Snapshot) -> Group:
    """A bar for the job, a table of the pools, and a line of what else there is to know."""
    bar = Table.grid(padding=(0, 2))
    bar.add_row(
        ProgressBar(total=max(look.rows_total, 1), completed=look.rows_done, width=36),
        Text(_rows(look)),
        Text(f"ETA {wording.clock(look.eta_s)}", style="bold"),
    )
    return Group(bar, _pool_table(look), _foot(look))


def _pool_table(look: Snapshot) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("pool")
    for name in ("engines ready", "rows", "running", "tokens/s in", "tokens/s out"):
        table.add_column(name, justify="right")
    for pool in look.pools:
        ready = pool.engines_ready == pool.engines_started and pool.engines_started > 0
        table.add_row(
            Text(pool.name),
            Text(f"{pool.engines_ready}/{pool.engines_started}", style="" if ready else "yellow"),
            wording.count(pool.rows),
            str(pool.running_rows),
            wording.rate(pool.input_tokens_per_s),
            wording.rate(pool.output_tokens_per_s),
        )
    if len(look.pools) > 1:
        table.add_row(
            "all", f"{look.engines_ready}/{look.engines_started}", wording.count(sum(p.rows for p in look.pools)),
            str(look.running_rows), wording.rate(look.input_tokens_per_s), wording.rate(look.output_tokens_per_s),
            style="bold",
        )  # fmt: skip
    return table


def _foot(look: Snapshot) -> Text:
    text = Text("errors ")
    text.append(str(look.errors), style="red" if look.errors else "")
    cost = f"cost {wording.usd(look.usd)}" if look.usd else ""
    for words in (_duplicates(look), f"waiting {look.waiting_rows}", cost):
        text.append(f" · {words}" if words else "")
    if look.failure:
        text.append(f"\nstopped: {look.failure}", style="red")
    return text

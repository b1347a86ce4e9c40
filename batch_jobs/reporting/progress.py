"""What a person sees while a job runs.

Role: a live line in a terminal, a plain line every few seconds in a log. Owns: the wording and the rate.
Must not know: where the numbers come from.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from batch_jobs.output.parts import Totals

LOG_EVERY_S = 5.0
_RATE_WINDOW_S = 30.0


class ProgressView:
    """Use as a context; `show` takes the sums of this run."""

    def __init__(
        self, console: Console, total_rows: int, done_rows: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._total = total_rows
        self._done_before = done_rows
        self._clock = clock
        self._samples: deque[tuple[float, Totals]] = deque()
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

    def show(self, totals: Totals, engines: int) -> None:
        now = self._clock()
        self._samples.append((now, totals))
        while self._samples[0][0] < now - _RATE_WINDOW_S:
            self._samples.popleft()
        if self._live is not None:
            self._live.update(self._bar(totals, engines), refresh=True)
        elif now - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now
            self._console.print(self.line(totals, engines), highlight=False, soft_wrap=True)

    def line(self, totals: Totals, engines: int) -> str:
        """For example `rows 512/10000 | tokens/s in 4100 out 820 | errors 3 | ETA 00:03:10`."""
        if not engines:
            return f"rows {self._done_before}/{self._total} | starting engines"
        in_rate, out_rate, row_rate = self._rates()
        left = self._total - self._done_before - totals.rows
        eta = time.strftime("%H:%M:%S", time.gmtime(left / row_rate)) if row_rate and left / row_rate < 86400 else "-"
        return (
            f"rows {self._done_before + totals.rows}/{self._total} | tokens/s in {in_rate:.0f} out {out_rate:.0f} | "
            f"errors {totals.error_rows} | ETA {eta}"
        )

    def _rates(self) -> tuple[float, float, float]:
        """Prompt tokens, output tokens and rows per second over the last half minute."""
        (first_s, first), (last_s, last) = self._samples[0], self._samples[-1]
        span_s = last_s - first_s
        if span_s <= 0:
            return 0.0, 0.0, 0.0
        return (
            (last.prompt_tokens - first.prompt_tokens) / span_s,
            (last.output_tokens - first.output_tokens) / span_s,
            (last.rows - first.rows) / span_s,
        )

    def _bar(self, totals: Totals, engines: int) -> Table:
        grid = Table.grid(padding=(0, 1))
        done = self._done_before + totals.rows
        grid.add_row(ProgressBar(total=self._total, completed=done, width=30), Text(self.line(totals, engines)))
        return grid

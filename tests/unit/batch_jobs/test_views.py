"""What a person sees while a job runs: the log's lines, the terminal's view, _progress.json."""

from __future__ import annotations

import io
import json

from rich.console import Console

from batch_jobs.reporting.progress import ProgressView, live_view, log_line
from batch_jobs.reporting.snapshot import RateMeter, Snapshot, take_snapshot
from batch_jobs.reporting.stats import PoolLife, Progress, RowStat, RunStats


def rows(count: int, prompt: int = 50, output: int = 20, error: str | None = None) -> list[RowStat]:
    return [RowStat(i, str(i), prompt, 0, output, error, 1.0) for i in range(count)]


def progress_of(stats: RunStats, ready: int = 1, **fields: object) -> Progress:
    lives = {pool: PoolLife(engines_started=2, engines_ready=ready, engine_seconds=1800.0) for pool in stats.pools}
    return Progress(stats, lives, **fields)  # type: ignore[arg-type]


def looks(pools: list[str], seconds: int, per_second: dict[str, int]) -> Snapshot:
    stats, meter, look = RunStats(pools), RateMeter(), None
    for second in range(seconds + 1):
        for pool, count in per_second.items():
            stats.record(pool, second, rows(count))
        progress = progress_of(stats, running_rows=7, waiting_rows=9)
        meter.add(float(second), stats)
        look = take_snapshot(progress, meter, 10_000, 100, {pools[0]: 2.0})
    assert look is not None
    return look


def test_one_plain_line_every_five_seconds() -> None:
    now = [0.0]
    out = io.StringIO()
    view = ProgressView(Console(file=out, width=20), 1000, 100, {"default": 0.5}, clock=lambda: now[0])
    stats = RunStats(["default"])
    with view:
        for second in range(12):
            now[0] = float(second)
            if second:
                stats.record("default", second, rows(9) + rows(1, error="missing_prompt"))
            view.show(progress_of(stats, running_rows=4))
    assert out.getvalue().splitlines() == [
        "rows 150/1000 (15.0 %) | tokens/s in 500 out 200 | running 4 | errors 5 | ETA 00:01:25 | $0.250",
        "rows 200/1000 (20.0 %) | tokens/s in 500 out 200 | running 4 | errors 10 | ETA 00:01:20 | $0.250",
    ]


def test_a_line_names_every_pool_in_brackets_when_there_are_several() -> None:
    line = log_line(looks(["l4", "h100"], 10, {"l4": 1, "h100": 3}))
    assert line.endswith("[l4 1/2 engines, 11 rows, in 50 out 20; h100 1/2 engines, 33 rows, in 150 out 60]")
    out = io.StringIO()
    view = ProgressView(Console(file=out, width=200), 10, 0, clock=iter([0.0, 9.0]).__next__)
    view.show(progress_of(RunStats(["[red]a", "b"])))
    assert "[[red]a 1/2 engines" in out.getvalue()  # brackets are text, not markup


def test_before_an_engine_is_ready_the_line_says_how_many_there_are() -> None:
    meter, stats = RateMeter(), RunStats(["a"])
    meter.add(0.0, stats)
    look = take_snapshot(progress_of(stats, ready=0), meter, 10, 0, {})
    assert log_line(look) == "rows 0/10 (0.0 %) | engines 0/2 ready | errors 0 | ETA -"


def test_rates_forget_what_is_older_than_half_a_minute() -> None:
    stats, meter = RunStats(["a"]), RateMeter()
    stats.record("a", 0, rows(1))
    meter.add(0.0, RunStats(["a"]))
    meter.add(1.0, stats)
    assert meter.pool("a").rows == 1
    meter.add(31.0, stats)
    assert meter.pool("a").rows == 0
    assert meter.rows_per_s() == 1 / 31  # the ETA does not vanish because nothing finished lately


def test_the_snapshot_is_json_and_counts_earlier_runs() -> None:
    look = looks(["a", "b"], 10, {"a": 1, "b": 3})
    written = json.loads(json.dumps(look.as_json(updated_unix_s=5.0)))
    assert written["rows_done"] == 144 and written["rows_total"] == 10_000
    assert written["eta_s"] == round((10_000 - 144) / 4, 1)
    assert written["usd"] == 1.0 and [pool["usd"] for pool in written["pools"]] == [1.0, 0.0]
    assert written["output_tokens_per_s"] == 80 and written["updated_unix_s"] == 5.0
    assert (written["running_rows"], written["waiting_rows"]) == (7, 9)


def test_a_terminal_shows_a_row_per_pool_and_leaves_nothing_behind() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100)
    console.print(live_view(looks(["l4", "h100"], 10, {"l4": 1, "h100": 3})))
    text = out.getvalue()
    table = {line.split()[0]: line.split()[1:] for line in text.splitlines()[2:5]}
    assert table["l4"] == ["1/2", "11", "0", "50", "20"]
    assert table["h100"][:2] == ["1/2", "33"] and table["all"][:2] == ["2/4", "44"]
    assert "cost $1.00" in text and "waiting 9" in text
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    with ProgressView(terminal, 10, 0) as view:
        view.show(progress_of(RunStats(["a"]), failure="an engine died"))

"""The report's arithmetic, its tables and its page; Ray metrics."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sys
from typing import Any

import pytest
from rich.console import Console

from batch_jobs.output.parts import Totals
from batch_jobs.reporting import distributions, plots
from batch_jobs.reporting.histogram import Histogram
from batch_jobs.reporting.html import html_report
from batch_jobs.reporting.metrics import JobMetrics
from batch_jobs.reporting.report import Report, make_report, print_report
from batch_jobs.reporting.stats import PoolLife, RowStat, RunStats


def ok(number: int, prompt: int = 600, output: int = 400) -> RowStat:
    return RowStat(number, str(number), prompt, prompt // 6, output, None, 0.5 + number % 7)


def two_pools() -> tuple[RunStats, dict[str, PoolLife]]:
    """`slow` ends at 80 s, `fast` at 100 s; both are ready from 20 s on."""
    stats = RunStats(["slow", "fast"])
    for second in range(21, 81):
        stats.record("slow", second, [ok(second)])
    for second in range(21, 101):
        stats.record("fast", second, [ok(second), ok(second + 1000), ok(second + 2000)])
    lives = {
        "slow": PoolLife(1, 1, 100.0, [20.0], 60.0, first_ready_s=20.0),
        "fast": PoolLife(2, 2, 200.0, [18.0, 20.0], 150.0, first_ready_s=20.0),
    }
    return stats, lives


def report_of(stats: RunStats, lives: dict[str, PoolLife], **changes: Any) -> Report:
    fields: dict[str, Any] = {
        "model": "m", "task": "generate", "run_id": "r1", "rows_total": 300, "committed": stats.totals(),
        "stats": stats, "lives": lives, "prices": {"slow": 3.6, "fast": 7.2}, "seconds": 101.0,
    }  # fmt: skip
    return make_report(**fields | changes)


def test_cost_is_the_price_of_every_engines_life() -> None:
    report = report_of(*two_pools())
    slow, fast = report.pools
    assert (slow.usd, fast.usd, report.run.usd) == (0.1, 0.4, 0.5)
    assert slow.usd_per_mtok == round(0.1 / 0.06, 6) and fast.usd_per_mtok == round(0.4 / 0.24, 6)
    assert report.run.usd_per_mtok == round(0.5 / 0.3, 6)
    assert (slow.tokens_per_s, fast.tokens_per_s) == (1000.0, 3000.0)
    assert report.run.tokens_per_s == round(300_000 / 101, 3)
    assert report.run.engine_start_s == [20.0, 18.0, 20.0] and report.run.engines_started == 3


def test_idle_tail_counts_only_while_engines_were_ready() -> None:
    stats, lives = two_pools()
    slow, fast = report_of(stats, lives).pools
    assert (slow.tail_idle_s, slow.tail_idle_share) == (20.0, 0.25)
    assert (fast.tail_idle_s, fast.tail_idle_share) == (0.0, 0.0)
    lives["slow"].last_ready_s = 85.0  # its node was taken away
    assert report_of(stats, lives).pools[0].tail_idle_s == 5.0
    lives["slow"].first_ready_s = None  # never ready
    assert report_of(stats, lives).pools[0].tail_idle_s == 0.0


def test_a_pool_that_never_got_a_row_was_idle_all_its_time() -> None:
    stats, lives = two_pools()
    idle = RunStats(["slow", "fast"])
    idle.pools["fast"] = stats.pools["fast"]
    slow = report_of(idle, lives).pools[0]
    assert (slow.tail_idle_s, slow.tail_idle_share, slow.usd_per_mtok, slow.tokens_per_s) == (80.0, 1.0, None, 0.0)


def test_the_whole_output_and_this_run_are_told_apart() -> None:
    stats, lives = two_pools()
    earlier = Totals(rows=10, prompt_tokens=1, errors={"invalid_json": 2, "too_long": 4}, duplicates=3)
    report = report_of(stats, lives, committed=stats.totals().plus(earlier), rows_total=310)
    assert (report.rows, report.ok, report.duplicates, report.complete) == (310, 304, 3, True)
    assert list(report.errors.items()) == [("too_long", 4), ("invalid_json", 2)]
    assert report.run.rows == 300 and report.tokens["input"] == report.run.tokens["input"] + 1
    assert not report_of(stats, lives, rows_total=301).complete
    assert json.loads(json.dumps(report.as_json()))["pools"][1]["name"] == "fast"


def test_without_prices_no_cost_is_claimed() -> None:
    report = report_of(*two_pools(), prices={})
    assert (report.run.usd, report.run.usd_per_mtok) == (0.0, None)
    assert "no pool has usd_per_hour" in printed(report)


def printed(report: Report) -> str:
    out = io.StringIO()
    print_report(Console(file=out, width=140), report)
    return out.getvalue()


def test_the_terminal_shows_pools_when_there_are_several() -> None:
    text = printed(report_of(*two_pools()))
    assert "$0.500, $1.67 per million tokens" in text
    assert re.search(r"slow .*60 .*1000 .*20\.0 s \(25\.0 %\)", text)
    single = RunStats(["only"])
    single.record("only", 1.0, [ok(1)])
    assert "Pools in this run" not in printed(report_of(single, {}, model="a[/b]"))


def test_the_page_needs_nothing_else_and_escapes_what_users_wrote() -> None:
    stats, lives = two_pools()
    stats.record("slow", 50.0, [RowStat(1, "1", 0, 0, 0, "<i>bad</i>", 0.0)])
    page = html_report(report_of(stats, lives, model="<b>m", config={"a": "<script>"}), stats, written_unix_s=0.0)
    assert page.count('<img src="data:image/svg+xml;base64,') == 6
    assert "<b>m" not in page and "<i>bad" not in page and "<script>" not in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "1970-01-01 00:00 UTC" in page
    assert page == html_report(
        report_of(stats, lives, model="<b>m", config={"a": "<script>"}), stats, written_unix_s=0.0
    )


def test_a_page_without_a_single_answer() -> None:
    stats = RunStats(["a"])
    stats.record("a", 1.0, [RowStat(0, "0", 0, 0, 0, "missing_prompt", 0.0)])
    page = html_report(report_of(stats, {}, rows_total=1), stats)
    assert "<img" not in page and "missing_prompt" in page and "No figures" not in page
    nothing = RunStats([])
    assert "Not complete" in html_report(report_of(nothing, {}), nothing)


def test_without_matplotlib_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    stats, lives = two_pools()
    page = html_report(report_of(stats, lives), stats)
    assert "<img" not in page and "matplotlib is not installed" in page and "slow" in page


def test_reporting_imports_neither_matplotlib_nor_ray() -> None:
    import subprocess

    modules = ("html", "plots", "distributions", "metrics", "predict", "progress", "report")
    script = "import sys\n" + "".join(f"import batch_jobs.reporting.{name}\n" for name in modules)
    script += "sys.exit(bool({'matplotlib', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_throughput_steps_hold_every_token_once() -> None:
    values = list(range(239))
    edges, (rates,) = plots._rates([("a", values)], 2.0, 470.5)
    assert len(rates) <= plots.MAX_POINTS and edges[-1] == 477.0  # the last bucket began at 476 s
    amounts = [rate * (edges[i + 1] - edges[i]) for i, rate in enumerate(rates)]
    assert sum(amounts) == pytest.approx(sum(values))
    assert min(edges[i + 1] - edges[i] for i in range(len(rates))) >= 4.0


def test_many_pools_become_few_series() -> None:
    series = plots._largest([(str(i), [i, 1]) for i in range(12)])
    assert [name for name, _ in series] == ["6", "7", "8", "9", "10", "11", "6 others"]
    assert series[-1][1] == [sum(range(6)), 6]


@pytest.mark.parametrize("values", [[64] * 5, [0, 0, 7], [1, 2, 3, 9000], [0.001, 0.5, 4000.0], [1.0]])
def test_bars_hold_every_row(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    for whole_numbers in (True, False):
        bounds = distributions._bounds(histogram, whole_numbers)
        shares = distributions._shares(histogram, bounds)
        assert sum(shares) == pytest.approx(100)
        assert distributions.MIN_BARS <= len(shares) <= distributions.MAX_BARS + 1
        assert distributions.distribution([("a", histogram)], "x", str, whole_numbers).startswith("<svg")


class FakeMetric:
    made: dict[str, FakeMetric]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.tag_keys, self.values, self.default = tag_keys, {}, {}
        FakeMetric.made[name] = self

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.default = tags

    def inc(self, amount: float, tags: dict[str, str]) -> None:
        assert amount > 0
        self.set(self.values.get(self._key(tags), 0) + amount, tags)

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        self.values[self._key(tags or {})] = value

    def _key(self, tags: dict[str, str]) -> tuple[str, ...]:
        every = self.default | tags
        assert set(every) == set(self.tag_keys)
        return tuple(every[key] for key in self.tag_keys)


def test_metrics_agree_with_what_was_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.util.metrics

    FakeMetric.made = {}
    monkeypatch.setattr(ray.util.metrics, "Counter", FakeMetric)
    monkeypatch.setattr(ray.util.metrics, "Gauge", FakeMetric)
    metrics = JobMetrics("m")
    copy = RowStat(3, "3", 600, 100, 400, None, 0.0, duplicate=True)
    metrics.count("l4", [ok(1), ok(2), copy, RowStat(4, "4", 0, 0, 0, "e", 0.0), copy._replace(error="e")])
    metrics.count("l4", [ok(5)])
    metrics.gauges("l4", running_rows=7, engines_ready=2)
    metrics.rows_left(11)
    values = {name: metric.values for name, metric in FakeMetric.made.items()}
    assert values == {
        "tribes_offline_rows_total": {("m", "l4", "ok"): 3, ("m", "l4", "error"): 2, ("m", "l4", "duplicate"): 1},
        "tribes_offline_tokens_total": {
            ("m", "l4", "input"): 1500, ("m", "l4", "cached_input"): 300, ("m", "l4", "output"): 1200,
        },
        "tribes_offline_running_rows": {("m", "l4"): 7},
        "tribes_offline_engines_ready": {("m", "l4"): 2},
        "tribes_offline_rows_left": {("m",): 11},
    }  # fmt: skip

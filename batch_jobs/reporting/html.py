"""report.html: one page that needs nothing else.

Role: put figures and tables into the template beside this file. Owns: what is on the page.
Must not know: how the numbers came about. Without matplotlib the page has no figures and says so.
"""

from __future__ import annotations

import importlib.util
import time
from importlib import resources
from typing import Any

from batch_jobs.reporting import wording
from batch_jobs.reporting.canvas import Plot
from batch_jobs.reporting.report import Report
from batch_jobs.reporting.stats import RunStats

TEMPLATE = "report.html.j2"


def html_report(report: Report, stats: RunStats, written_unix_s: float | None = None) -> str:
    """The whole page. `stats` are those that the report was made from."""
    import yaml
    from jinja2 import Environment, StrictUndefined

    can_plot = importlib.util.find_spec("matplotlib") is not None
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"duration": wording.duration, "usd": wording.usd, "rate": wording.rate, "percent": wording.percent}
    page.filters["count"] = "{:,}".format
    source = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    written = time.gmtime(time.time() if written_unix_s is None else written_unix_s)
    return page.from_string(source).render(
        report=report,
        run=report.run,
        facts=_facts(report),
        quantiles=_quantiles(report),
        plots=_plots(report, stats) if can_plot else [],
        can_plot=can_plot,
        config=yaml.safe_dump(report.config, sort_keys=False, allow_unicode=True) if report.config else "",
        written=time.strftime("%Y-%m-%d %H:%M UTC", written),
    )


def _facts(report: Report) -> list[tuple[str, str, str]]:
    """Large numbers at the top: name, value, what more there is to say."""
    run = report.run
    failed = sum(report.errors.values())
    facts = [
        ("Rows answered", f"{report.ok:,}", f"of {report.rows_total:,}"),
        ("Errors", f"{failed:,}", wording.percent(failed / report.rows) if report.rows else ""),
        ("Duplicates", f"{report.duplicates:,}", "computed once"),
        ("Time", wording.duration(run.seconds), f"this run, {run.rows:,} rows"),
        ("Speed", wording.rate(run.tokens_per_s), "tokens/s in and out"),
    ]
    if run.usd:
        per_mtok = "this run" if run.usd_per_mtok is None else f"{wording.usd(run.usd_per_mtok)} per Mtok"
        facts.append(("Cost", wording.usd(run.usd), per_mtok))
    return facts


def _quantiles(report: Report) -> list[tuple[str, list[str]]]:
    run = report.run
    kinds = [
        ("Time per row", run.row_seconds, wording.duration),
        ("Prompt tokens", run.prompt_tokens, _tokens),
        ("Output tokens", run.output_tokens, _tokens),
    ]
    columns = ("min", "p50", "mean", "p90", "p99", "max")
    return [(name, [write(values[column]) for column in columns]) for name, values, write in kinds if values["count"]]


def _tokens(value: float) -> str:
    return f"{value:,.0f}"


def _plots(report: Report, stats: RunStats) -> list[Plot]:
    from batch_jobs.reporting.distributions import distribution
    from batch_jobs.reporting.plots import costs, throughput

    drawn = []
    several = " Stacked by pool." if len(stats.pools) > 1 else ""
    for kind, title in (("output_tokens", "Output"), ("input_tokens", "Input")):
        series: list[Any] = [(name, getattr(pool.timeline, kind)) for name, pool in stats.pools.items()]
        if any(sum(values) for _, values in series):
            svg = throughput(series, stats.width_s, report.run.seconds, f"{title.lower()} tokens per second")
            drawn.append(Plot(f"{title} throughput", f"Tokens of rows when they were committed.{several}", svg))
    seconds = [(name, pool.seconds) for name, pool in stats.pools.items()]
    if stats.histogram("seconds").count:
        svg = distribution(seconds, "time per row (s)", wording.duration, whole_numbers=False)
        drawn.append(Plot("Time per row", "From the row's start in an engine to its last token.", svg))
    for kind, title in (("prompt_tokens", "Prompt length"), ("output_tokens", "Output length")):
        lengths = stats.histogram(kind)
        if lengths.count and lengths.max:
            svg = distribution([("all", lengths)], "tokens per row", wording.count, whole_numbers=True)
            drawn.append(Plot(title, "Rows that an engine answered.", svg))
    if report.run.usd:
        note = "The hourly price of a pool times the life of its engine processes, their start included."
        drawn.append(Plot("Cost", note, costs([pool for pool in report.pools if pool.usd])))
    return drawn

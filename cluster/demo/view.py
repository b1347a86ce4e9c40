"""The demo's results on the screen. Owns: tables and the plot. Must not know: how anything was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.cli.screen import titled_table
from cluster.cli.status_view import duration
from cluster.demo.results import ClassSummary, Results, Sample

PLOT_WIDTH = 56
BARS = " ▁▂▃▄▅▆▇█"
SHOWN_CHARS = 240


def print_results(screen: Console, results: Results) -> None:
    """Everything the file has, for people."""
    screen.print()
    screen.print(_classes(results.classes))
    screen.print(_tenants(results))
    screen.print(_costs(results))
    for line in replica_plot(results.samples):
        screen.print(line, markup=False)
    if results.scale_up_s is not None:
        screen.print(
            f"  more replicas were wanted {results.scale_up_s:.1f} s after the burst began (or a little earlier)"
        )
    for name, seconds in results.cold_start_s.items():
        screen.print(f"  cold start of {name}: {seconds:.1f} s", markup=False)
    _print_answers(screen, results)
    _print_errors(screen, results)
    steps = ", ".join(f"{name} {duration(seconds)}" for name, seconds in results.seconds.items())
    screen.print(f"\ntime: {steps}{' (the cluster was up already)' if results.reused else ''}")


def _facts(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
    """A fact per row and a class or tenant per column: few of those, so that it fits a narrow terminal."""
    table = titled_table(title, "", *columns, right=columns)
    for name, values in rows.items():
        table.add_row(name, *values)
    return table


def _classes(classes: Sequence[ClassSummary]) -> Table:
    rows = {
        "served by": [item.served_by for item in classes],
        "requests": [str(item.requests) for item in classes],
        "failed": [str(item.errors) for item in classes],
        "tokens in": [str(item.prompt_tokens) for item in classes],
        "of them cached": [str(item.cached_tokens) for item in classes],
        "tokens out": [str(item.output_tokens) for item in classes],
        "tokens out per second": [_rate(item.output_tokens_per_s) for item in classes],
        "TTFT p50": [_short(item.ttft_p50_s) for item in classes],
        "TTFT p95": [_short(item.ttft_p95_s) for item in classes],
        "ITL p50": [_short(item.itl_p50_s) for item in classes],
        "queue wait p50": [_short(item.queue_wait_p50_s) for item in classes],
        "queue wait max": [_short(item.queue_wait_max_s) for item in classes],
    }
    return _facts("What ran, by class", [item.request_class for item in classes], rows)


def _tenants(results: Results) -> Table:
    tenants = results.tenants
    rows = {
        "weight": [f"{row['weight']:g}" for row in tenants],
        "requests": [str(row["requests"]) for row in tenants],
        "failed": [str(row["errors"]) for row in tenants],
        "tokens in": [str(row["prompt_tokens"]) for row in tenants],
        "tokens out": [str(row["output_tokens"]) for row in tenants],
        "share of all service": [_percent(row["service_share"]) for row in tenants],
        "share of the first half": [_percent(row["first_half_share"]) for row in tenants],
        "queue wait p50": [_short(row["queue_wait_p50_s"]) for row in tenants],
        "whole request p50": [_short(row["e2e_p50_s"]) for row in tenants],
        "USD": [f"{row['usd']:.6f}" for row in tenants],
    }
    title = "The burst, by tenant (weights decide who goes first)"
    return _facts(title, [row["tenant"] for row in tenants], rows)


def _costs(results: Results) -> Table:
    columns = ("requests", "USD", "USD per Mtok")
    table = titled_table("Cost of this run", "tenant", "deployment", "class", *columns, right=columns)
    for row in results.costs:
        per_mtok = f"{row['usd_per_mtok']:.4f}" if row["usd_per_mtok"] is not None else "-"
        requests = str(row["requests"])
        table.add_row(row["tenant"], row["deployment"], row["request_class"], requests, f"{row['usd']:.6f}", per_mtok)
    return table


def replica_plot(samples: Sequence[Sample]) -> list[str]:
    """Replicas and requests over the burst; each line has its own scale."""
    if not samples:
        return ["no sample of the burst could be taken"]
    ready = [sample.ready for sample in samples]
    column_s = samples[-1].t_s / len(sparkline(ready))
    lines = [f"Semi-online over {samples[-1].t_s:.0f} s (a column is {column_s:.1f} s)"]
    for name, values in (
        ("wanted", [sample.wanted for sample in samples]),
        ("ready", ready),
        ("starting", [sample.starting for sample in samples]),
        ("waiting", [sample.waiting for sample in samples]),
        ("running", [sample.running for sample in samples]),
    ):
        lines.append(f"  {name:<9}|{sparkline(values)}| max {max(values)}")
    lines.append(f"  replicas ready: {' -> '.join(str(value) for value in _changes(ready))}")
    return lines


def sparkline(values: Sequence[int], width: int = PLOT_WIDTH) -> str:
    """One character per bucket of equal length, its height the bucket's largest value; blank is zero."""
    size = max(1, math.ceil(len(values) / width))
    peaks = [max(values[start : start + size]) for start in range(0, len(values), size)]
    top = max(peaks, default=0)
    return "".join(BARS[math.ceil(peak / top * (len(BARS) - 1))] if top else BARS[0] for peak in peaks)


def _changes(values: Sequence[int]) -> list[int]:
    return [value for index, value in enumerate(values) if index == 0 or value != values[index - 1]]


def _print_answers(screen: Console, results: Results) -> None:
    screen.print("\n[bold]Answers[/bold]")
    for request_class, sample in results.answers.items():
        if sample:
            screen.print(Text.assemble((f"  {request_class}: ", "cyan"), _shortened(sample["prompt"])), soft_wrap=True)
            screen.print(Text.assemble(("    -> ", "dim"), _shortened(sample["answer"])), soft_wrap=True)


def _print_errors(screen: Console, results: Results) -> None:
    for request in [*results.chat, *results.burst]:
        if request.error is not None:
            screen.print(f"failed ({request.tenant}): {request.error}", style="red", markup=False, soft_wrap=True)


def _shortened(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SHOWN_CHARS else flat[: SHOWN_CHARS - 3] + "..."


def _short(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _rate(per_s: float | None) -> str:
    return "-" if per_s is None else f"{per_s:.0f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"

"""Offline jobs as tables. Owns: columns and wording. Must not know: where the data comes from."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batch_jobs.storage import shown
from cluster.cli.screen import titled_table
from cluster.cli.status_view import duration

_STYLES = {
    "complete": "green", "succeeded": "green", "running": "green", "failed": "red", "interrupted": "red",
}  # fmt: skip
PARTS_SHOWN = 3
_LONG = 400
_SHOWN_ELSEWHERE = ("config", "errors", "run", "model", "pools")


def render_list(screen: Console, found: dict[str, Any]) -> None:
    """`tribes batch ls`."""
    right = ("rows", "%", "tokens/s", "ETA", "cost")
    table = titled_table("Offline jobs", "id", "status", *right, "output", right=right)
    table.columns[0].no_wrap = True  # to be copied
    table.columns[-1].overflow = "fold"
    for job in found["jobs"]:
        table.add_row(
            job["id"] or "-",
            status_text(job["status"]),
            rows_text(job),
            percent_text(job),
            number(job["tokens_per_s"]),
            duration(job["eta_s"]),
            usd(job["usd"]),
            Text(shown(job["output"] or "?")),
        )
    screen.print(table if table.row_count else "no offline jobs: `tribes batch submit` starts one")
    if found["hidden"]:
        screen.print(f"and {found['hidden']} older: --limit shows more", style="dim")
    for problem in sorted(
        {f"{shown(job['output'] or job['id'])}: {job['problem']}" for job in found["jobs"] if job["problem"]}
    ):
        screen.print(f"? {problem}", style="yellow", markup=False, soft_wrap=True)
    if found["no_ray"]:
        note = f"without Ray ({found['no_ray']}): states are those of the output folders"
        screen.print(note, style="dim", markup=False, soft_wrap=True)


def status_text(status: str) -> Text:
    return Text(status, style=_STYLES.get(status, "yellow"))


def rows_text(job: dict[str, Any]) -> str:
    """512/10000, or ? where the output could not be read and - where nothing is written yet."""
    if job["rows_done"] is None and job["rows_total"] is None:
        return "?" if job["problem"] else "-"
    return "/".join("?" if count is None else str(count) for count in (job["rows_done"], job["rows_total"]))


def percent_text(job: dict[str, Any]) -> str:
    if job["percent"] is None:
        return "?" if job["problem"] else "-"
    # 100 is said only when nothing is left.
    return f"{job['percent'] if job['rows_done'] == job['rows_total'] else min(job['percent'], 99.9):.4g}"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def usd(value: float | None) -> str:
    return "-" if value is None else f"${value:.4f}"


def progress_line(job: dict[str, Any]) -> str:
    """The job in one line, as a log shows it again and again."""
    rates = "tokens/s " + (
        f"in {number(job['input_tokens_per_s'])} out {number(job['output_tokens_per_s'])}"
        if job["output_tokens_per_s"] is not None
        else number(job["tokens_per_s"])
    )
    parts = [
        job["status"], f"rows {rows_text(job)} ({percent_text(job)} %)", rates, f"errors {job['errors']}",
        f"ETA {duration(job['eta_s'])}", f"cost {usd(job['usd'])}",
    ]  # fmt: skip
    return " | ".join(parts)


def render_job(screen: Console, job: dict[str, Any]) -> None:
    """`tribes batch show`."""
    screen.print(Text.assemble((job["id"] or shown(job["output"] or "?"), "bold"), "  ", status_text(job["status"])))
    screen.print(progress_line(job), markup=False, soft_wrap=True)
    for table in (_settings(job), _pools(job), _errors(job), _report(job)):
        if table.row_count:
            screen.print(table)
    if job["output"] is not None:
        for line in _places(job):
            screen.print(line, markup=False, soft_wrap=True)
    if job["problem"]:
        screen.print(job["problem"], style="yellow", markup=False, soft_wrap=True)
    if job["failure"]:
        screen.print(job["failure"], style="red", markup=False, soft_wrap=True)
    if job["log_tail"]:
        screen.print("its log ends with:", style="red")
        for line in job["log_tail"]:
            screen.print(f"  {line}", markup=False, soft_wrap=True)


def _named(title: str, values: dict[str, Any]) -> Table:
    """Two columns: names and what they are, nested data as JSON."""
    table = titled_table(title, "name", "value")
    table.show_header = False
    for name, value in values.items():
        if value is not None and value != {} and value != []:
            table.add_row(name, Text(_value(value)))
    return table


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False, default=str)
    text = str(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."


def _settings(job: dict[str, Any]) -> Table:
    submitted = job["submitted_at_s"]
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(submitted)) if submitted else None
    return _named("Settings", {"model": job["model"], "submitted": when} | job["settings"])


def _pools(job: dict[str, Any]) -> Table:
    """A column for each figure that some pool has: the driver decides which there are."""
    pools: dict[str, dict[str, Any]] = job["pools"]
    flat = (name for item in pools.values() for name, value in item.items() if not isinstance(value, dict | list))
    columns = [name for name in dict.fromkeys(flat) if name != "name"]
    table = titled_table("Pools", "pool", *(column.replace("_", " ") for column in columns))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, item in pools.items():
        table.add_row(name, *("-" if item.get(column) is None else _value(item[column]) for column in columns))
    return table


def _errors(job: dict[str, Any]) -> Table:
    table = titled_table("Error rows", "kind", "rows", right=("rows",))
    for kind, count in sorted(job["errors_by_kind"].items(), key=lambda item: -item[1]):
        table.add_row(kind, str(count))
    return table


def _report(job: dict[str, Any]) -> Table:
    """The figures of the last run; the configuration that it carries is for other programs."""
    report = {name: value for name, value in job["report"].items() if name not in _SHOWN_ELSEWHERE}
    run = job["report"].get("run")
    figures = {f"run: {name}": value for name, value in run.items() if name != "timeline"} if run else {}
    return _named("Report of the last run", report | figures)


def _places(job: dict[str, Any]) -> list[str]:
    """Where everything is."""
    files: list[str] = job["files"]
    parts = [path for path in files if path.rpartition("/")[2].startswith("part-")]
    lines = [f"output  {shown(job['output'])}"]
    if parts:
        more = f" and {len(parts) - PARTS_SHOWN} more" if len(parts) > PARTS_SHOWN else ""
        lines.append(f"parts   {', '.join(path.rpartition('/')[2] for path in parts[:PARTS_SHOWN])}{more}")
    for path in files:
        name = path.rpartition("/")[2]
        if path not in parts and name != "done.json":
            lines.append(f"{'report' if name.startswith('report.') else 'file':<7} {path}")
    return lines

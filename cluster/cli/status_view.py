"""`tribes status` as tables. Owns: columns and wording. Must not know: where the data comes from."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.cli.screen import titled_table

_GOOD = {"RUNNING", "HEALTHY", "SUCCEEDED", "ready", "running"}
_BAD = {"DEPLOY_FAILED", "UNHEALTHY", "FAILED", "NOT_DEPLOYED"}
MAX_ENTRYPOINT = 60


def render(screen: Console, found: dict[str, Any]) -> None:
    """Everything, most important first; empty parts are left out."""
    heading = Text.assemble((found["name"], "bold"), "  ", state_text(found["application"]["status"]))
    screen.print(heading, f" API {found['api_url']}  dashboard {found['dashboard_url']}", soft_wrap=True)
    for problem in [found["application"]["message"], *found["problems"]]:
        if problem:
            screen.print(problem, style="red", markup=False, soft_wrap=True)
    for table in (_deployments(found), _replicas(found), _queues(found), _jobs(found), _costs(found)):
        if table.row_count:
            screen.print(table)


def state_text(state: str) -> Text:
    return Text(state, style="green" if state in _GOOD else "red" if state in _BAD else "yellow")


def duration(seconds: float | None) -> str:
    """12 s, 3 min 20 s, 5 h 2 min."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _deployments(found: dict[str, Any]) -> Table:
    table = titled_table("Deployments", "name", "model", "engine", "classes", "status", "replicas", "scaling")
    for item in found["deployments"]:
        bounds = f" ({item['min_replicas']} to {item['max_replicas']})" if item["max_replicas"] is not None else ""
        wanted = f" of {item['wanted_replicas']}" if item["wanted_replicas"] is not None else ""
        table.add_row(
            item["name"],
            item["model"] or "-",
            item["engine"] or "-",
            ", ".join(item["serves"]) or "-",
            state_text(item["status"]),
            f"{len(item['replicas'])}{wanted}{bounds}",
            Text(item["scaling_reason"] or item["message"] or "-"),
        )
    return table


def _replicas(found: dict[str, Any]) -> Table:
    columns = ("replica", "state", "running", "age", "cold start", "KV cache", "node", "pid")
    table = titled_table("Replicas", *columns, right=("running", "age", "cold start", "KV cache", "pid"))
    for deployment in found["deployments"]:
        for item in deployment["replicas"]:
            table.add_row(
                f"{deployment['name']}/{item['replica_id']}",
                state_text(item["state"]),
                _or_dash(item["running"]),
                duration(item["age_s"]),
                duration(item["cold_start_s"]),
                f"{item['kv_usage']:.0%}" if item["kv_usage"] is not None else "-",
                item["node"] or "-",
                _or_dash(item["pid"]),
            )
    return table


def _queues(found: dict[str, Any]) -> Table:
    columns = ("model", "class", "tenant", "waiting", "running", "service")
    table = titled_table("Queue (service: weighted tokens, the smaller goes first)", *columns, right=columns[3:])
    for queue in found["queues"]:
        for row in queue["tenants"]:
            counts = (str(row["waiting"]), str(row["running"]), f"{row['service']:.0f}")
            table.add_row(queue["model"], row["class"], row["tenant"], *counts)
    return table


def _jobs(found: dict[str, Any]) -> Table:
    table = titled_table("Jobs", "id", "status", "started", "took", "entrypoint")
    for job in found["jobs"]:
        entrypoint = job["entrypoint"]
        shown = entrypoint if len(entrypoint) <= MAX_ENTRYPOINT else entrypoint[: MAX_ENTRYPOINT - 3] + "..."
        table.add_row(job["id"], state_text(job["status"]), _clock(job["started_at_s"]), _took(job), Text(shown))
    return table


def _costs(found: dict[str, Any]) -> Table:
    hours = found["costs_of_last_h"]
    title = f"Costs, last {hours:g} h" if hours else "Costs"
    columns = ("tenant", "deployment", "class", "requests", "tokens in", "cached", "out", "USD", "USD per Mtok")
    table = titled_table(title, *columns, right=columns[3:])
    for row in found["costs"]:
        counts = (str(row[key]) for key in ("requests", "prompt_tokens", "cached_tokens", "output_tokens"))
        per_mtok = f"{row['usd_per_mtok']:.4f}" if row["usd_per_mtok"] is not None else "-"
        table.add_row(row["tenant"], row["deployment"], row["request_class"], *counts, f"{row['usd']:.5f}", per_mtok)
    return table


def _took(job: dict[str, Any]) -> str:
    if job["started_at_s"] is None:
        return "-"
    return duration((job["ended_at_s"] or time.time()) - job["started_at_s"])


def _clock(at_s: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s)) if at_s else "-"


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)

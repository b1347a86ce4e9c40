"""The tables of `benchmarks.routing`. Owns: their rows. Must not know: how the figures came about."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

Place = tuple[str, str, int]


def routing_table(result: dict[str, Any]) -> list[str]:
    """One row a router, one column a scenario: p95 time to the first token and hits of what could be hit."""
    return [
        *_table(result, "p95 time to first token (s)", "ttft_p95_s", lambda value: f"{value:.3g}"),
        "",
        *_table(result, "hit rate, of the ceiling", "hit_rate_of_ceiling", lambda value: f"{value:.1%}"),
    ]


def _table(result: dict[str, Any], title: str, metric: str, shown: Callable[[float], str]) -> list[str]:
    runs = [run for run in result["runs"] if "workload" in run]
    places: list[Place] = list(dict.fromkeys((run["workload"], run["load"], run["replicas"]) for run in runs))
    names = [f"{workload}, {load}, {replicas} replicas" for workload, load, replicas in places]
    lines = [f"| {title} | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for side in dict.fromkeys(run["side"] for run in runs):
        cells = [shown(median(r[metric] for r in runs if r["side"] == side and _place(r) == place)) for place in places]
        lines.append(f"| `{side}` | {' | '.join(cells)} |")
    return lines


def _place(run: dict[str, Any]) -> Place:
    return run["workload"], run["load"], run["replicas"]

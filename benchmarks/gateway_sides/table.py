"""The README's table of `benchmarks.gateway`. Owns: its rows. Must not know: how the figures came about."""

from __future__ import annotations

import statistics
from typing import Any

COLUMNS = {
    "added to first token, p50 (ms)": ("c1", "added_ttft_p50_ms"),
    "p99": ("c1", "added_ttft_p99_ms"),
    "to the whole, p50": ("c1", "added_total_p50_ms"),
    "300 req/s, p99": ("open300", "added_ttft_p99_ms"),
    "req/s at 16": ("c16", "rps"),
    "at 64": ("c64", "rps"),
    "CPU s per 1,000": ("c16", "cpu_s_per_1000"),
    "PSS (MiB)": ("memory", "pss_mib"),
}
"""Heading -> case, metric."""
SIDES = {
    "direct": "the engine alone",
    "tribes": "Tribes, Serve's endpoint",
    "tribes_contended": "the same, two tenants waiting",
    "tribes_own_door": "Tribes, own listener",
    "serve_haproxy": "plain Serve + HAProxy",
    "serve": "plain Serve as shipped",
    "vllm_router": "vllm-router",
    "sglang_router": "sglang-router",
    "litellm": "LiteLLM proxy",
}


def doors_table(result: dict[str, Any]) -> list[str]:
    """One row a side, medians over the rounds; a dash where a side was not measured."""
    lines = [f"| door | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for side, shown in SIDES.items():
        own = [run for run in result["runs"] if run["side"] == side]
        if own:
            lines.append(f"| {shown} | {' | '.join(_median(own, *what) for what in COLUMNS.values())} |")
    return lines


def _median(runs: list[dict[str, Any]], case: str, metric: str) -> str:
    values = [run[metric] for run in runs if run["case"] == case and metric in run]
    return f"{statistics.median(values):.3g}" if values and max(values) < 1000 else _thousands(values)


def _thousands(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f}" if values else "-"

"""The table of `benchmarks.routing_live`. Owns: its rows. Must not know: how the figures came about."""

from __future__ import annotations

from statistics import median
from typing import Any

COLUMNS = {
    "prompt tokens cached": ("hit_rate", "{:.1%}"),
    "of the ceiling": ("hit_rate_vs_ceiling", "{:.1%}"),
    "first token, p50 (ms)": ("ttft_p50_ms", "{:.0f}"),
    "p95": ("ttft_p95_ms", "{:.0f}"),
    "unsent": ("unsent", "{:.0f}"),
    "failed": ("failed", "{:.0f}"),
}
"""Heading -> metric, how it is shown."""


def routing_live_table(result: dict[str, Any]) -> list[str]:
    """One row a side, medians over the pairs."""
    lines = [f"| door | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for side in dict.fromkeys(run["side"] for run in result["runs"]):
        own = [run for run in result["runs"] if run["side"] == side]
        cells = [shown.format(median(run[metric] for run in own)) for metric, shown in COLUMNS.values()]
        lines.append(f"| `{side}` | {' | '.join(cells)} |")
    return lines

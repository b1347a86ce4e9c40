"""The README's table of `benchmarks.fairness`. Owns: its rows. Must not know: how the figures came about."""

from __future__ import annotations

from typing import Any

ARENA_COLUMNS = {
    "difference_max": "difference, max",
    "difference_mean": "mean",
    "jain": "Jain",
    "tokens_per_s": "tokens/s",
    "served": "served",
    "ttft_p99_s_median_tenant": "p99 TTFT of the median tenant (s)",
}
LIVE_SIDES = {"alone": "without the noise", "noisy_tribes": "with it", "noisy_fifo": "with it, order of arrival"}


def arena_table(result: dict[str, Any]) -> list[str]:
    """One row a policy, on the trace as it was recorded."""
    lines = [f"| policy | {' | '.join(ARENA_COLUMNS.values())} |", f"|---|{'---|' * len(ARENA_COLUMNS)}"]
    for run in result["runs"]:
        if run["scenario"] == "arena" and run["pair"] == 0:
            lines.append(f"| `{run['side']}` | {' | '.join(f'{run[column]:.4g}' for column in ARENA_COLUMNS)} |")
    return lines


def live_table(result: dict[str, Any]) -> list[str]:
    """What the quiet tenants saw, medians over the pairs; nothing when the live part was not run."""
    runs = [run for run in result["runs"] if run["scenario"] == "live"]
    if not runs:
        return []
    lines = ["| quiet tenants, live | p50 TTFT (ms) | p99 TTFT (ms) | missed |", "|---|---|---|---|"]
    for side, shown in LIVE_SIDES.items():
        own = [run for run in runs if run["side"] == side]
        p50, p99 = (_middle([run[f"quiet_ttft_{p}_s"] for run in own]) * 1e3 for p in ("p50", "p99"))
        missed, asked = (sum(run[name] for run in own) for name in ("quiet_missed", "quiet_requests"))
        lines.append(f"| {shown} | {p50:.0f} | {p99:.0f} | {missed} of {asked} |")
    return lines


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]

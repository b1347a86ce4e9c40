"""Two pictures, PNG and SVG: time to the first token, and hits of what could be hit, by scenario and router.

Owns: the drawing, from a result's data alone. Must not know: how the figures came about.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

SHOWN = {
    "random": "#c9c9c9",
    "round_robin": "#a5a5a5",
    "least_loaded": "#7d7d7d",
    "cache_aware": "#d9903d",
    "session_only": "#4a7fb5",
    "tribes": "#2e8b57",
}
SIZE_INCHES, DOTS_PER_INCH = (10.0, 4.2), 150


def plot(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw both pictures into `folder`; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        *_bars(result, "ttft_p95_s", "p95 time to first token (s, log scale)", True, folder / "routing_ttft_p95"),
        *_bars(result, "hit_rate_of_ceiling", "hit rate, of one cache for all", False, folder / "routing_hit_rate"),
    ]


def _bars(result: dict[str, Any], metric: str, title: str, log: bool, path: Path) -> list[Path]:
    from matplotlib.figure import Figure  # without pyplot: no window system is looked for, no state is shared

    runs = [run for run in result["runs"] if "workload" in run]
    places = list(dict.fromkeys((r["workload"], r["load"], r["replicas"]) for r in runs))
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    width = 0.84 / len(SHOWN)
    for number, (side, colour) in enumerate(SHOWN.items()):
        heights = [
            median(r[metric] for r in runs if r["side"] == side and (r["workload"], r["load"], r["replicas"]) == place)
            for place in places
        ]
        offset = (number - (len(SHOWN) - 1) / 2) * width
        axes.bar([n + offset for n in range(len(places))], heights, width, color=colour, label=side)
    axes.set_xticks(range(len(places)), [_label(*place) for place in places])
    if log:
        axes.set_yscale("log")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, ncols=len(SHOWN), loc="upper center", bbox_to_anchor=(0.5, -0.2))
    files = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in files:
        figure.savefig(file, dpi=DOTS_PER_INCH)
    return files


def _label(workload: str, load: str, replicas: int) -> str:
    return f"{workload.split('_')[0]}\n{load}\n{replicas} replicas"

"""Two pictures of the arena trace, PNG and SVG: difference in service over time, and who got how much.

Owns: the drawing, from a result's data alone. Must not know: how the figures came about.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TIMELINE = ("fcfs", "lcf", "vtc", "vtc_oracle", "tribes")
BARS = ("fcfs", "vtc", "tribes")
COLOURS = {"fcfs": "#b0413e", "lcf": "#d9903d", "vtc": "#4a7fb5", "vtc_oracle": "#8a8a8a", "tribes": "#2e8b57"}
STYLES = {"vtc_oracle": "--"}
SIZE_INCHES, DOTS_PER_INCH = (9.0, 4.2), 150
TENANTS_SHOWN = 12


def plot(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw both pictures into `folder`; the files written."""
    runs = {r["side"]: r for r in result["runs"] if r.get("scenario") == "arena" and "window_starts_s" in r}
    folder.mkdir(parents=True, exist_ok=True)
    return [*_timeline(runs, folder), *_by_tenant(runs, folder)]


def _timeline(runs: dict[str, dict[str, Any]], folder: Path) -> list[Path]:
    figure, axes = _canvas()
    for side in TIMELINE:
        run = runs[side]
        axes.plot(
            run["window_starts_s"], run["window_differences"], label=side, color=COLOURS[side],
            linestyle=STYLES.get(side, "-"), linewidth=2.2 if side == "tribes" else 1.5, marker="o", markersize=3,
        )  # fmt: skip
    axes.set_xlabel("start of the window of 60 s (s)")
    axes.set_ylabel("service difference (weighted tokens/s)")
    axes.set_title("27 tenants, one engine: how much less some got than others (lower is fairer)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, ncols=len(TIMELINE), loc="upper left")
    return _save(figure, folder / "fairness_difference")


def _by_tenant(runs: dict[str, dict[str, Any]], folder: Path) -> list[Path]:
    figure, axes = _canvas()
    asked = runs[BARS[0]]["asked_by_tenant"]
    tenants = sorted(asked, key=lambda tenant: -asked[tenant])[:TENANTS_SHOWN]
    width = 0.8 / len(BARS)
    places = range(len(tenants))
    axes.bar(places, [asked[t] / 1e3 for t in tenants], 0.86, color="#e6e6e6", label="asked for")
    for number, side in enumerate(BARS):
        got = runs[side]["service_by_tenant"]
        offset = (number - (len(BARS) - 1) / 2) * width
        axes.bar([p + offset for p in places], [got[t] / 1e3 for t in tenants], width, color=COLOURS[side], label=side)
    axes.set_xticks(places, tenants)
    axes.set_xlabel(f"the {len(tenants)} tenants that asked for most")
    axes.set_ylabel("service in 600 s (1000 weighted tokens)")
    axes.set_title("Who got how much of what they asked for")
    axes.legend(frameon=False)
    return _save(figure, folder / "fairness_tenants")


def _canvas() -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no window system is looked for, no state is shared

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Any, path: Path) -> list[Path]:
    files = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in files:
        figure.savefig(file, dpi=DOTS_PER_INCH)
    return files

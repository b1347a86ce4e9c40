"""Throughput and cost as figures.

Role: draw what report.py computed, as SVG. Must not know: the page around them. Beyond as many pools as there are
colours the smallest are drawn as one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from batch_jobs.reporting import wording
from batch_jobs.reporting.canvas import COLOURS, GREY, legend, new_figure, plain_axis, short, to_svg
from batch_jobs.reporting.report import PoolReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STARTING, WORKING, IDLE = "#E69F00", "#0072B2", "#C9CDD4"
MAX_SERIES = len(COLOURS)
MAX_POINTS = 60
_BAR = 0.62
Series = Sequence[tuple[str, Sequence[float]]]


def throughput(series: Series, width_s: float, seconds: float, unit: str) -> str:
    """`series`: per pool a sum per bucket of `width_s`. Stacked, so that the outline is the job's rate."""
    others = len(series) > MAX_SERIES
    series = _largest(series)
    edges, rates = _rates(series, width_s, seconds)
    scale, time_unit = _time_unit(edges[-1])
    with new_figure() as (figure, (axes,)):
        floor = [0.0] * len(rates[0])
        colours = [*COLOURS[: MAX_SERIES - 1], GREY] if others else COLOURS
        for (name, _), values, colour in zip(series, rates, colours, strict=False):
            top = [low + value for low, value in zip(floor, values, strict=True)]
            x = [edge / scale for edge in edges]
            axes.fill_between(
                x, [*floor, floor[-1]], [*top, top[-1]], step="post", color=colour, linewidth=0, label=name
            )
            floor = top
        axes.set(xlim=(0, edges[-1] / scale), xlabel=f"time since the run began ({time_unit})", ylabel=unit)
        axes.set_ylim(0, (max(floor) or 1.0) * 1.06)
        plain_axis(axes)
        legend(figure, axes)
        return to_svg(figure)


def _rates(series: Series, width_s: float, seconds: float) -> tuple[list[float], list[list[float]]]:
    """Per second, in at most MAX_POINTS steps. The last step ends with the run; a short rest joins the one before."""
    buckets = max(len(values) for _, values in series)
    group = -(-buckets // MAX_POINTS)
    step_s = group * width_s
    end_s = max(seconds, (buckets - 1) * width_s + width_s / 2)
    steps = -(-buckets // group)
    if steps > 1 and end_s - (steps - 1) * step_s < step_s / 2:
        steps -= 1
    edges = [step * step_s for step in range(steps)] + [end_s]
    rates = []
    for _, values in series:
        sums = [0.0] * steps
        for index, value in enumerate(values):
            sums[min(index // group, steps - 1)] += value
        rates.append([total / (edges[i + 1] - edges[i]) for i, total in enumerate(sums)])
    return edges, rates


def _largest(series: Series) -> Series:
    """The largest pools in their order, and all others as one."""
    if len(series) <= MAX_SERIES:
        return series
    kept = {name for name, _ in sorted(series, key=lambda item: -sum(item[1]))[: MAX_SERIES - 1]}
    others = [values for name, values in series if name not in kept]
    rest = [sum(column) for column in itertools.zip_longest(*others, fillvalue=0.0)]
    return [*((name, values) for name, values in series if name in kept), (f"{len(others)} others", rest)]


def costs(pools: Sequence[PoolReport]) -> str:
    """What each pool cost, by what its engines did meanwhile, and what a million tokens cost there."""
    pools = list(reversed(pools))
    prices = [pool.usd_per_mtok or 0.0 for pool in pools]
    with new_figure(height_in=1.4 + 0.36 * len(pools), panels=2 if any(prices) else 1) as (figure, (spent, *price)):
        left = [0.0] * len(pools)
        measured = any(pool.busy_seconds is not None for pool in pools)
        for label, colour, part in _PARTS if measured else (_PARTS[0], ("ready", WORKING, _working)):
            widths = [part(pool) * pool.usd_per_hour / 3600 for pool in pools]
            spent.barh(range(len(pools)), widths, left=left, height=_BAR, color=colour, label=label)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        _name_bars(spent, left, [wording.usd(pool.usd) for pool in pools])
        names = [short(pool.name) for pool in pools]
        spent.set_yticks(range(len(pools)), names)
        spent.set_xlabel("cost of this run ($)")
        for axes in price:
            axes.barh(range(len(pools)), prices, height=_BAR, color=GREY)
            _name_bars(axes, prices, [wording.usd(pool.usd_per_mtok) for pool in pools])
            axes.set_yticks([])
            axes.set_xlabel("cost per million tokens ($)")
        legend(figure, spent)
        return to_svg(figure)


def _starting(pool: PoolReport) -> float:
    return min(sum(pool.engine_start_s), pool.engine_seconds)


def _working(pool: PoolReport) -> float:
    ready_s = pool.engine_seconds - _starting(pool)
    return ready_s if pool.busy_seconds is None else min(pool.busy_seconds, ready_s)


def _idle(pool: PoolReport) -> float:
    return pool.engine_seconds - _starting(pool) - _working(pool)


_PARTS = (("starting", STARTING, _starting), ("working", WORKING, _working), ("idle", IDLE, _idle))


def _name_bars(axes: Axes, ends: Sequence[float], labels: Sequence[str]) -> None:
    """Values stand at the bars' ends, so the axis needs no numbers."""
    axes.set_xlim(0, (max(ends) or 1.0) * 1.4)
    axes.set_ylim(-0.75, len(ends) - 0.25)
    axes.set_xticks([])
    axes.tick_params(left=False)
    axes.spines["bottom"].set_visible(False)
    for row, (end, label) in enumerate(zip(ends, labels, strict=True)):
        axes.annotate(label, (end, row), xytext=(4, 0), textcoords="offset points", va="center")


def _time_unit(seconds: float) -> tuple[float, str]:
    return (1.0, "s") if seconds < 300 else (60.0, "min") if seconds < 3 * 3600 else (3600.0, "h")

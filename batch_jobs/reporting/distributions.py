"""Latencies and lengths as figures.

Role: draw histograms, as SVG. Must not know: what was measured. Lines of more than a few pools cannot be told apart, so
these are drawn as one distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING

from batch_jobs.reporting import wording
from batch_jobs.reporting.canvas import COLOURS, INK, legend, new_figure, plain_axis, to_svg
from batch_jobs.reporting.histogram import PER_DOUBLING, Histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BARS = 32
MIN_BARS = 7
MAX_LINES = 4


def distribution(
    histograms: Sequence[tuple[str, Histogram]], label: str, write: Callable[[float], str], whole_numbers: bool
) -> str:
    """Shares of rows on a logarithmic axis, with the median and the 99th percentile of all rows in words."""
    whole = reduce(Histogram.plus, (histogram for _, histogram in histograms))
    if len(histograms) > MAX_LINES:
        histograms = [("all", whole)]
    bounds = _bounds(whole, whole_numbers)
    edges = [2.0 ** (bound / PER_DOUBLING) for bound in bounds]
    with new_figure() as (figure, (axes,)):
        for (name, histogram), colour in zip(histograms, COLOURS, strict=False):
            alone = len(histograms) == 1
            axes.stairs(_shares(histogram, bounds), edges, fill=alone, color=colour, linewidth=1.8, label=name)
        axes.set_xscale("log")
        axes.set(xlim=(edges[0], edges[-1]), xlabel=label, ylabel="share of rows (%)")
        axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
        _log_ticks(axes, edges)
        plain_axis(axes)
        _mark_quantiles(axes, whole, write)
        legend(figure, axes)
        return to_svg(figure)


def _bounds(histogram: Histogram, whole_numbers: bool) -> range:
    """Bucket numbers at which bars begin: at most MAX_BARS, at least MIN_BARS. Bars of small whole numbers are up to an
    octave wide, as narrower ones would stand between two numbers and be empty."""
    low, high = min(histogram.buckets), max(histogram.buckets)
    low = max(low, 1) if whole_numbers else low
    high = max(low, high)
    step = next((step for step in (1, 2, 4, 8) if (high - low) / step < MAX_BARS), 16)
    if whole_numbers:
        while step < PER_DOUBLING and 2 ** (low / PER_DOUBLING) * (2 ** (step / PER_DOUBLING) - 1) < 1:
            step *= 2
    first, last = (low - 1) // step, -(-high // step)
    missing = max(MIN_BARS - (last - first), 0)
    return range((first - missing // 2) * step, (last + missing - missing // 2) * step + 1, step)


def _shares(histogram: Histogram, bounds: range) -> list[float]:
    """Percent of the histogram's values per bar; what lies below the first bar (zeros) is in it."""
    shares = [0.0] * (len(bounds) - 1)
    for bucket, rows in histogram.buckets.items():
        shares[max(bucket - 1 - bounds.start, 0) // bounds.step] += 100 * rows / histogram.count
    return shares


def _log_ticks(axes: Axes, edges: Sequence[float]) -> None:
    """Three to eight round numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ticks: list[float] = []
    for digits in ((1, 2, 5), (1, 3), (1,)):
        decades = range(math.floor(math.log10(edges[0])), math.ceil(math.log10(edges[-1])) + 1)
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if edges[0] <= tick <= edges[-1]]
        if len(ticks) <= 7:
            break
    if len(ticks) < 2:
        ticks = [edges[0], math.sqrt(edges[0] * edges[-1]), edges[-1]]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: wording.tick(value)))


def _mark_quantiles(axes: Axes, histogram: Histogram, write: Callable[[float], str]) -> None:
    """Two dashed lines; their labels lean away from each other, and one is enough where the two nearly coincide."""
    left, right = axes.get_xlim()
    median, high = histogram.quantile(0.5) or left, histogram.quantile(0.99) or left
    close = math.log(max(high, left) / max(median, left)) < 0.02 * math.log(right / left)
    marks = [("median" if not close else "median and p99", median, "right" if not close else "left")]
    marks += [] if close else [("p99", high, "left")]
    for name, value, side in marks:
        at = max(value, left)
        share = math.log(at / left) / math.log(right / left)
        side = "left" if share < 0.3 else "right" if share > 0.8 else side
        axes.axvline(at, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"{name} {write(value)}", (at, 1), xycoords=("data", "axes fraction"), ha=side, va="top", fontsize=9.5,
            xytext=(4 if side == "left" else -4, 0 if name != "p99" or share < 0.8 else -13),
            textcoords="offset points",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip

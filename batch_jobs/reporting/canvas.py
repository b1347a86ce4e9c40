"""An empty figure in the report's style.

Role: what all figures share. Owns: colours, type, legends, number axes. Must not know: what is drawn.

matplotlib is imported by these functions only, and used without pyplot, so that nothing global changes. Every figure is
drawn for a column of some 500 px, so that its text can be read on a phone too. Colours: Okabe and Ito's, which people
with any colour vision can tell apart.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batch_jobs.reporting import wording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7A6A00")
GREY = "#8A8F98"
INK = "#1F2430"
LEGEND_CHARS = 72
_SIZE_IN = (5.2, 3.1)
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "svg.fonttype": "path",
    "svg.hashsalt": "tribes",
}


_LEGEND: dict[str, Any] = {"frameon": False, "handlelength": 1, "handleheight": 1, "columnspacing": 1.2, "fontsize": 10}


@dataclass(frozen=True)
class Plot:
    """A figure on a page, with its title and a line about it."""

    title: str
    note: str
    svg: str

    @property
    def data_uri(self) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()


@contextmanager
def new_figure(height_in: float = _SIZE_IN[1], panels: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(_SIZE_IN[0], height_in), layout="constrained")
        yield figure, [figure.add_subplot(1, panels, panel + 1) for panel in range(panels)]


def to_svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def plain_axis(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: wording.tick(value)))
    axes.grid(axis="y", color="#E7E9ED", linewidth=0.8)


def legend(figure: Figure, axes: Axes) -> None:
    """Above the plot, in as many columns as fit; none for a single series."""
    handles, names = axes.get_legend_handles_labels()
    if len(names) > 1:
        names = [short(name) for name in names]
        columns = max(min(LEGEND_CHARS // (max(map(len, names)) + 5), 4), 1)
        figure.legend(handles, names, loc="outside upper left", ncols=columns, **_LEGEND)


def short(name: str) -> str:
    return name if len(name) <= 20 else name[:19] + "\u2026"

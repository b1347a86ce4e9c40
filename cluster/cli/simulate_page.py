"""The page of `tribes simulate --html`: one file that needs nothing else, in the look of the offline jobs' report.

Owns: what is on the page and its figures. Must not know: how the numbers came about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from typing import TYPE_CHECKING

from batch_jobs.reporting import wording
from batch_jobs.reporting.canvas import COLOURS, Plot, legend, new_figure, plain_axis, to_svg

if TYPE_CHECKING:
    from cluster.simulation.results import SimulationResult

TEMPLATE = "simulate.html.j2"
TENANTS_SHOWN = 20
Lines = Sequence[tuple[str, Sequence[float], Sequence[float]]]
"""(name, x, y)."""


def page(results: Sequence[SimulationResult]) -> str:
    """All results side by side."""
    from jinja2 import Environment, StrictUndefined

    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"duration": wording.duration, "usd": wording.usd, "percent": wording.percent, "rate": wording.rate}
    source = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    return made.from_string(source).render(results=results, plots=_plots(results), tenants_shown=TENANTS_SHOWN)


def _plots(results: Sequence[SimulationResult]) -> list[Plot]:
    return [
        Plot("Replicas", "Ready ones, over simulated time.", _steps(_replicas(results), "replicas")),
        Plot("Requests", "Arrivals, and those of them that met their SLO.", _curves(_requests(results), "per second")),
        Plot("Output", "Tokens of requests that ended.", _curves(_tokens(results), "tokens per second")),
        Plot("Attainment", "Share of the requests of each class that met its SLO.", _attainment(results)),
    ]


def _replicas(results: Sequence[SimulationResult]) -> Lines:
    lines = []
    for result in results:
        for item in result.deployments.values():
            times = [at_s for at_s, _, _ in item.timeline] + [result.seconds]
            counts = [float(ready) for _, ready, _ in item.timeline]
            lines.append((_name(results, result, item.name), times, [*counts, counts[-1] if counts else 0.0]))
    return lines


def _requests(results: Sequence[SimulationResult]) -> Lines:
    first = results[0].rates
    lines = [("arrived", _middles(first.width_s, first.arrived), [n / first.width_s for n in first.arrived])]
    for result in results:
        rates = result.rates
        good = [n / rates.width_s for n in rates.good]
        lines.append((_name(results, result, "good"), _middles(rates.width_s, rates.good), good))
    return lines


def _tokens(results: Sequence[SimulationResult]) -> Lines:
    lines = []
    for result in results:
        rates = result.rates
        values = [n / rates.width_s for n in rates.output_tokens]
        lines.append((_name(results, result, "output"), _middles(rates.width_s, rates.output_tokens), values))
    return lines


def _name(results: Sequence[SimulationResult], result: SimulationResult, what: str) -> str:
    return what if len(results) == 1 else f"{result.name} {what}"


def _middles(width_s: float, values: Sequence[float]) -> list[float]:
    return [(place + 0.5) * width_s for place in range(len(values))]


def _steps(lines: Lines, unit: str) -> str:
    return _draw(lines, unit, lambda axes, x, y, **look: axes.step(x, y, where="post", **look))


def _curves(lines: Lines, unit: str) -> str:
    return _draw(lines, unit, lambda axes, x, y, **look: axes.plot(x, y, **look))


def _draw(lines: Lines, unit: str, how: Callable[..., object]) -> str:
    with new_figure() as (figure, (axes,)):
        for place, (name, x, y) in enumerate(lines):
            how(axes, x, y, color=COLOURS[place % len(COLOURS)], label=name, linewidth=1.6)
        axes.set(xlabel="simulated time (s)", ylabel=unit)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        plain_axis(axes)
        legend(figure, axes)
        return to_svg(figure)


def _attainment(results: Sequence[SimulationResult]) -> str:
    names = list(dict.fromkeys(name for result in results for name in result.classes))
    width = 0.8 / len(results)
    with new_figure() as (figure, (axes,)):
        for place, result in enumerate(results):
            offset = (place - (len(results) - 1) / 2) * width
            shares = [result.classes[n].attainment if n in result.classes else 0.0 for n in names]
            colour = COLOURS[place % len(COLOURS)]
            axes.bar([i + offset for i in range(len(names))], shares, width, color=colour, label=result.name)
        axes.set_xticks(range(len(names)), names)
        axes.set_ylim(0, 1)
        axes.set_ylabel("share that met the SLO")
        plain_axis(axes)
        legend(figure, axes)
        return to_svg(figure)

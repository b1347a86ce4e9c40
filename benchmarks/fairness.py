"""Is the queue fair, what does fairness cost, and what does a quiet tenant notice of a noisy one?

Two parts. Simulation: a small deterministic model of an engine drives the dispatcher's own queue object and, in its
place, FIFO, round robin, rate limits per tenant, least counter first, and VTC plain, with its predictor and with an
oracle; scenarios in fairness_sides/scenarios.py, formulas in fairness_sides/metrics.py. Live: the whole stack with a
real engine as a user starts it; fairness_sides/live.py. The simulation takes a minute or less; the live part about 25.

`python -m benchmarks.fairness --json FILE [--quick] [--no-live] [--data FOLDER] [--plots FOLDER]`
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.fairness_sides import scenarios
from benchmarks.fairness_sides.engine_model import Engine
from benchmarks.fairness_sides.live import QUICK_RUN_S, RUN_S, Live, live_config
from benchmarks.fairness_sides.plot import plot
from benchmarks.fairness_sides.scenarios import OURS
from benchmarks.fairness_sides.workload import ARENA_FILE
from benchmarks.report import Report
from cluster.config import TribesConfig, load_config

REPETITIONS, QUICK_REPETITIONS = 9, 3
LIVE_PAIRS, QUICK_LIVE_PAIRS = 5, 3
VTC_BOUND = 40_000.0
"""2U of VTC's theorem 4.4: two backlogged tenants differ by less. U = 2 x the pool's 10,000 tokens."""
console = Console(stderr=True)


def main(
    json_path: Annotated[Path, typer.Option("--json", help="Where the result goes.")],
    quick: Annotated[bool, typer.Option(help="Three repetitions, shorter live runs.")] = False,
    live: Annotated[bool, typer.Option(help="Run the live part as well.")] = True,
    data: Annotated[Path, typer.Option(help=f"Folder that has {ARENA_FILE}.")] = Path("../shared/data"),
    plots: Annotated[Path | None, typer.Option(help="Folder for plots of the simulation.")] = None,
    config_path: Annotated[Path, typer.Option("--config", help="Of the live part.")] = Path("configs/local.yaml"),
) -> None:
    if not (data / ARENA_FILE).is_file():
        raise typer.BadParameter(f"no {ARENA_FILE} in {data}; name the folder that has it", param_hint="--data")
    config = _live_config(config_path) if live else None  # a bad one must not cost a minute first
    report = Report("fairness", "python -m benchmarks.fairness " + " ".join(sys.argv[1:]), described())
    simulate(report, data, QUICK_REPETITIONS if quick else REPETITIONS)
    report.write(json_path)  # what was measured is kept, whatever happens to the live part
    if plots is not None:
        plot(report.as_data(), plots)
    if config is not None:
        part = Live(config, QUICK_RUN_S if quick else RUN_S, console.log)
        report.config["live"] = part.described()
        part.run(report, QUICK_LIVE_PAIRS if quick else LIVE_PAIRS)
        report.write(json_path)
    for name, ratio in report.ratios.items():
        shown = f"{name}: {ratio['median']:.4g} ({ratio['min']:.4g} to {ratio['max']:.4g})"
        console.print(f"{shown} {report.bars.get(name, '')}")


def _live_config(path: Path) -> TribesConfig:
    try:
        return live_config(load_config(path))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--config") from error


def described() -> dict[str, Any]:
    """The exact configuration of the simulated sides."""
    return {
        "engine_model": asdict(Engine()),
        "arena": {"file": ARENA_FILE, "moved_by_up_to_s": scenarios.ARENA_MOVED_S, "every_time": scenarios.PAIRED},
        "overload": {
            "rates_per_s": scenarios.OVERLOAD_RATES,
            "seconds": scenarios.OVERLOAD_S,
            "tokens": scenarios.SIZE,
        },
        "weights": {"rates_per_s": scenarios.WEIGHTED_RATES, "weights": scenarios.WEIGHTS, "tokens": scenarios.SIZE},
        "noisy": {
            "rates_per_s": {**scenarios.QUIET_RATES, "noisy": scenarios.NOISY_RATE},
            "seconds": scenarios.NOISY_S,
            "tokens": scenarios.NOISY_SIZES,
        },
        OURS: "cluster.scheduling.RequestQueue with its defaults; progress every 0.25 s, one granted request buffered",
    }


def simulate(report: Report, data: Path, repetitions: int) -> None:
    """All simulated runs, their ratios and bars."""
    for repetition, side, figures in scenarios.arena_runs(data, repetitions):
        report.add(repetition, side, scenario="arena", **figures)
        console.log(f"arena {repetition} {side}: {figures['difference_max']:.0f}/{figures['difference_mean']:.0f}")
    for name, runs in (
        ("overload", scenarios.overload_runs()),
        ("weights", scenarios.weights_runs()),
        ("noisy", scenarios.noisy_runs()),
    ):
        for side, figures in runs:
            report.add(0, side, scenario=name, **figures)
            console.log(f"{name} {side}: {figures}")
    _compare_arena(report)
    _compare_others(report)


def _compare_arena(report: Report) -> None:
    for metric, least in (("max", 0.55), ("mean", 0.70)):
        _divide(report, f"vtc_vs_fcfs_{metric}", f"difference_{metric}", "vtc", "fcfs", most=least)
    for name, side in (("throughput_vs_fcfs", OURS), ("vtc_throughput_vs_fcfs", "vtc")):
        _divide(report, name, "tokens_per_s", side, "fcfs")
        report.bar(name, ">= 0.99", lambda got: got >= 0.99)
    for metric in ("max", "mean"):
        difference = f"difference_{metric}"
        # The published order, each against the next, where it was published: on the trace as it was recorded.
        for side, other in itertools.pairwise(("vtc_oracle", "vtc", "lcf", "fcfs")):
            _divide(report, f"recorded_{side}_vs_{other}_{metric}", difference, side, other, most=1.0, pair=0)
        _divide(report, f"ours_vs_vtc_{metric}", difference, OURS, "vtc", most=1.0)
        # Nearer to the oracle than VTC is; going past it counts as having reached it.
        _divide(report, f"vtc_vs_oracle_{metric}", difference, "vtc", "vtc_oracle")
        vtc = report.ratios[f"vtc_vs_oracle_{metric}"]["median"]
        _divide(report, f"ours_vs_oracle_{metric}", difference, OURS, "vtc_oracle", most=vtc)


def _compare_others(report: Report) -> None:
    report.compare("overload_gap_vs_bound", "gap_max", OURS, OURS, lambda got, _: got / VTC_BOUND, scenario="overload")
    report.bar("overload_gap_vs_bound", "<= 1", lambda got: got <= 1)
    report.compare("weighted_share_error", "share_error_max", OURS, OURS, lambda got, _: got, scenario="weights")
    report.bar("weighted_share_error", "<= 0.03", lambda got: got <= 0.03)
    _divide(report, "noisy_quiet_p99_ttft_vs_fcfs", "quiet_ttft_p99_s", OURS, "fcfs", scenario="noisy")


def _divide(
    report: Report,
    name: str,
    metric: str,
    side: str,
    other: str,
    *,
    most: float | None = None,
    scenario: str = "arena",
    **where: Any,
) -> None:
    """One side's figure over another's; `most` makes it a bar."""
    report.compare(name, metric, side, other, lambda a, b: a / b, scenario=scenario, **where)
    if most is not None:
        report.bar(name, f"<= {most:.3g}", lambda got: got <= most)


if __name__ == "__main__":
    typer.run(main)

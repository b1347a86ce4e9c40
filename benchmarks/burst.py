"""Does capacity follow a tenfold burst in time, and what does it cost?

Two cases. `simulation`: recorded traffic (ServeGen, Azure) with a minute of ten times as many requests in it, on
replicas that take 6 s to come (about a forked start), in front of the dispatcher's own queue
(burst_sides/cluster_model.py). Three sides decide on their number: the project's policy as configured by default, Ray
Serve's request-based autoscaling (Ray's own functions, tuned by a grid search on another part of the trace), and a
fixed number that is enough for the peak; the others may have half as many again. One core, some minutes.
`live`: the same three on the real engine of the first semi-online vLLM deployment of CONFIG, a cluster each.

Attained: first token within 10 s. `burst_to_slo_s`: from the burst's begin until the last request arrived that waited
for more than the wait target, 5 s. Replica-seconds count from a replica's order until it has left.

`python -m benchmarks.burst --json FILE [--quick] [--case NAME ...] [--data FOLDER] [--config FILE]`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.burst_sides import live, metrics, workload
from benchmarks.burst_sides import scenarios as setting
from benchmarks.burst_sides.scenarios import OURS, PEAK, SERVE
from benchmarks.report import Report
from cluster.config import load_config
from cluster.local.auth import enable_token_auth

CASES = ("simulation", "live")
QUICK_PIECES = 2
PAIRS, QUICK_PAIRS = 3, 1
console = Console(stderr=True)


def main(
    json_path: Annotated[Path, typer.Option("--json", help="Where the result goes.")],
    quick: Annotated[bool, typer.Option(help="Fewer repetitions.")] = False,
    case: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(CASES)}.")] = None,
    data: Annotated[Path, typer.Option(help=f"Folder that has {', '.join(workload.FILES.values())}.")] = Path(
        "../shared/data"
    ),
    config_path: Annotated[Path, typer.Option("--config", help="Of the real engine.")] = Path("configs/local.yaml"),
) -> None:
    cases = case or list(CASES)
    if wrong := set(cases) - set(CASES):
        raise typer.BadParameter(f"no case {', '.join(wrong)}; there are {', '.join(CASES)}", param_hint="--case")
    report = Report("burst", "python -m benchmarks.burst " + " ".join(sys.argv[1:]), {})
    if case and json_path.exists():
        keep_other_cases(report, json.loads(json_path.read_text()), cases)
    if "simulation" in cases:
        for file in workload.FILES.values():
            if not (data / file).is_file():
                raise typer.BadParameter(f"no {file} in {data}; name the folder that has it", param_hint="--data")
        simulate(report, data, QUICK_PIECES if quick else setting.PIECES)
        report.write(json_path)  # what is measured is kept, whatever happens to the next case
    if "live" in cases:
        enable_token_auth()
        live.measure(report, load_config(config_path), QUICK_PAIRS if quick else PAIRS, console.log)
    judge(report)
    report.write(json_path)
    for name, ratio in report.ratios.items():
        shown = f"{name}: {ratio['median']:.4g} ({ratio['min']:.4g} to {ratio['max']:.4g})"
        console.print(f"{shown} {report.bars.get(name, '')}")


def keep_other_cases(report: Report, before: dict[str, Any], cases: list[str]) -> None:
    """Pairs are paired within their case, so cases that were measured at other times may stand in one file."""
    report.runs += [run for run in before["runs"] if run["case"] not in cases]
    report.config = {name: config for name, config in before["config"].items() if name not in cases}
    report.command = f"{before['command']}; {report.command}"


def simulate(report: Report, data: Path, pieces: int) -> None:
    """All scenarios, each with its own tuning of the other sides."""
    shown: dict[str, Any] = {
        "wait_target_s": metrics.WAIT_TARGET_S,
        "slo_ttft_s": metrics.SLO_TTFT_S,
        "burst": {"seconds": workload.BURST_S, "factor": workload.FACTOR},
        "seconds": setting.PIECE_S,
        "counted_from_s": setting.COUNTED_FROM_S,
        "start_s": setting.START_S,
        "scenarios": {},
    }
    report.config["simulation"] = shown
    for place, scenario in enumerate(setting.scenarios()):
        tuned = setting.tune(scenario, data)
        shown["scenarios"][scenario.trace] = {
            "trace": workload.FILES[scenario.trace],
            "engine": asdict(scenario.engine),
            OURS: asdict(setting.bounds(scenario, tuned.most)),
            PEAK: {"replicas": tuned.peak},
            SERVE: {"chosen": setting.settings_of(tuned.serve), "tried": tuned.tried},
        }
        console.log(f"{scenario.trace}: peak {tuned.peak}, serve {setting.settings_of(tuned.serve)}")
        for number in range(pieces):
            for side, figures in setting.run(scenario, tuned, data, number):
                where = {"case": "simulation", "scenario": scenario.trace}
                report.add(place * setting.PIECES + number, side, **where, **figures)
                console.log(f"{scenario.trace} {number} {side}: {figures}")


def judge(report: Report) -> None:
    """The named ratios over all simulated pairs, and by trace; those of the live case."""
    done = {run["case"] for run in report.runs}
    for prefix, where in groups(report):
        for name, metric, side, other, how in (
            ("attainment_vs_peak_points", "attainment", OURS, PEAK, _points),
            ("replica_seconds_vs_peak", "replica_seconds", OURS, PEAK, _ratio),
            ("attainment_vs_serve", "attainment", OURS, SERVE, _points),
            ("replica_seconds_vs_serve", "replica_seconds", OURS, SERVE, _ratio),
            ("burst_to_slo_s", "burst_to_slo_s", OURS, OURS, _own),
            ("burst_to_slo_s_serve", "burst_to_slo_s", SERVE, SERVE, _own),
        ):
            report.compare(prefix + name, metric, side, other, how, **where)
    for prefix in [p for c, p in (("simulation", ""), ("live", "live_")) if c in done]:
        report.bar(f"{prefix}attainment_vs_peak_points", ">= -2", lambda got: got >= -2)
        report.bar(f"{prefix}replica_seconds_vs_peak", "<= 0.6", lambda got: got <= 0.6)
        report.bar(f"{prefix}attainment_vs_serve", "> 0", lambda got: got > 0)
        report.bar(f"{prefix}replica_seconds_vs_serve", "< 1", lambda got: got < 1)


def groups(report: Report) -> Iterator[tuple[str, dict[str, Any]]]:
    """(prefix of the names, what a run must have)."""
    if any(run["case"] == "simulation" for run in report.runs):
        yield "", {"case": "simulation"}
        for name in dict.fromkeys(run["scenario"] for run in report.runs if run["case"] == "simulation"):
            yield f"{name}_", {"case": "simulation", "scenario": name}
    if any(run["case"] == "live" for run in report.runs):
        yield "live_", {"case": "live"}


def _points(mine: float, other: float) -> float:
    return 100 * (mine - other)


def _ratio(mine: float, other: float) -> float:
    return mine / other


def _own(mine: float, _: float) -> float:
    return mine


if __name__ == "__main__":
    typer.run(main)

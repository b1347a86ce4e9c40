"""Is the simulation fast enough for a thousand GPUs, and is it right?

Speed: 1,000 replicas, 10 simulated minutes, 1,911 requests/s; and a tenth of that with the live policies
(simulate_sides/speed.py). Closeness: two recordings of vLLM (simulate_sides/closeness.py says what is fitted on what).
One core, some minutes.

`python -m benchmarks.simulate --json FILE [--quick] [--data FOLDER]`
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.report import Report
from benchmarks.simulate_sides import closeness, speed

SECONDS = 600.0
SIZES = {"fleet": (1000, 1911.0), "live": (100, 191.1)}
"""Replicas and requests a second: the live policies cost some 20 times as much as an engine."""
RUNS, QUICK_RUNS = 3, 1
AZURE_FILE, RECORDINGS_FOLDER = "azure_2023_conv.csv", "sim_validation"
MOST_SECONDS, MOST_GIB = 15.0, 2.0
console = Console(stderr=True)


def main(
    json_path: Annotated[Path, typer.Option("--json", help="Where the result goes.")],
    quick: Annotated[bool, typer.Option(help="One run of each size.")] = False,
    data: Annotated[Path, typer.Option(help=f"Folder that has {AZURE_FILE} and {RECORDINGS_FOLDER}/.")] = Path(
        "../shared/data"
    ),
) -> None:
    for name in (AZURE_FILE, RECORDINGS_FOLDER):
        if not (data / name).exists():
            raise typer.BadParameter(f"no {name} in {data}; name the folder that has it", param_hint="--data")
    report = Report("simulate", "python -m benchmarks.simulate " + " ".join(sys.argv[1:]), described())
    measure_closeness(report, data / RECORDINGS_FOLDER)
    measure_speed(report, data / AZURE_FILE, QUICK_RUNS if quick else RUNS)
    report.write(json_path)
    for name, ratio in report.ratios.items():
        shown = f"{name}: {ratio['median']:.4g} ({ratio['min']:.4g} to {ratio['max']:.4g})"
        console.print(f"{shown} {report.bars.get(name, '')}")


def described() -> dict[str, Any]:
    return {
        "speed": {
            "replicas_and_requests_per_s": SIZES,
            "seconds": SECONDS,
            "lengths": AZURE_FILE,
            **speed.described(),
        },
        "closeness": {
            "engines": {name: asdict(engine) for name, engine in closeness.RECORDINGS.items()},
            "fitted_share_held_out": closeness.FITTED_SHARE,
            "held_out": "fitted on the requests that ended first, judged on the others",
            "all": "fitted and judged on all requests",
        },
    }


def measure_closeness(report: Report, folder: Path) -> None:
    for name, split, figures in closeness.runs(folder):
        report.add(0, name, split=split, **figures)
        shown = ", ".join(f"{metric} {figures[f'{metric}_error']:+.2%}" for metric in closeness.GATES)
        console.log(f"{name} {split}: {shown}")
    for metric, gate in closeness.GATES.items():
        errors = [abs(run[f"{metric}_error"]) for run in report.runs if run.get("split") == "held_out"]
        name = f"{metric}_error_max"
        report.ratios[name] = {"median": max(errors), "min": min(errors), "max": max(errors)}
        report.bar(name, f"<= {gate:g}", lambda got, most=gate: got <= most)


def measure_speed(report: Report, trace: Path, runs: int) -> None:
    for pair in range(runs):
        for mode in ("fleet", "live"):
            if mode == "live" and pair:
                continue  # reported, not barred
            replicas, requests_per_s = SIZES[mode]
            figures = speed.measured(mode, replicas, SECONDS, requests_per_s, trace)
            report.add(pair, mode, **figures)
            took = f"{figures['seconds']:.1f} s ({figures['cpu_s']:.1f} s of a core)"
            console.log(f"{mode} {pair}: {took}, {figures['memory_gib']:.2f} GiB")
    for mode, name in (("fleet", "1000_replicas"), ("live", "100_replicas_live")):
        report.compare(f"seconds_{name}", "seconds", mode, mode, lambda got, _: got)
        report.compare(f"core_seconds_{name}", "cpu_s", mode, mode, lambda got, _: got)
        report.compare(f"memory_gib_{name}", "memory_gib", mode, mode, lambda got, _: got)
    report.bar("seconds_1000_replicas", f"<= {MOST_SECONDS:g}", lambda got: got <= MOST_SECONDS)
    report.bar("memory_gib_1000_replicas", f"< {MOST_GIB:g}", lambda got: got < MOST_GIB)


if __name__ == "__main__":
    typer.run(main)

"""Does a real engine lose anything behind the gateway, do replicas add up, and how does ray.serve.llm compare?

Three cases, each with a file of its own in `online_sides`. `engine`: the engine of the first online deployment of
CONFIG, asked directly, through Serve's endpoint behind HAProxy, and through the gateway's own listener: one process,
the same prompts' shapes, one side after the other in turn. 32 at once for tokens/s, 8 at once for the time between
tokens. It gets as many slots as the load has requests, so that no side is limited but by the engine. `replicas`:
scripted engines, one and eight of them. `ray_serve_llm`: the first vLLM server of CONFIG here and in ray.serve.llm with
direct streaming behind HAProxy, each on a cluster of its own, under the load of `engine`.

`python -m benchmarks.online --json FILE [--quick] [--case NAME ...] [--config FILE]`
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.online_sides import engine, ray_llm, replicas
from benchmarks.report import Report
from cluster.config import load_config
from cluster.local import LocalClusterError
from cluster.local.auth import enable_token_auth

JUDGES = {
    engine.CASE: engine.judge_engine,
    replicas.CASE: replicas.judge_replicas,
    ray_llm.CASE: ray_llm.judge_ray_llm,
}
"""By case, in the order in which they run."""
PAIRS, QUICK_PAIRS = 5, 2
REPLICAS_S, QUICK_REPLICAS_S = 6.0, 3.0
console = Console(stderr=True)


def main(
    json_path: Annotated[Path, typer.Option("--json", help="Where the result goes.")],
    quick: Annotated[bool, typer.Option(help="Two pairs instead of five.")] = False,
    case: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(JUDGES)}.")] = None,
    config_path: Annotated[Path, typer.Option("--config", help="Of the real engine.")] = Path("configs/local.yaml"),
) -> None:
    cases = case or list(JUDGES)
    if wrong := set(cases) - set(JUDGES):
        raise typer.BadParameter(f"no case {', '.join(wrong)}; there are {', '.join(JUDGES)}", param_hint="--case")
    enable_token_auth()
    report = Report("online", "python -m benchmarks.online " + " ".join(sys.argv[1:]), {})
    if case and json_path.exists():
        keep_other_cases(report, json.loads(json_path.read_text()), cases)
    try:
        _measure(report, cases, config_path, json_path, quick)
    except LocalClusterError as error:
        console.print(f"error: {error}", markup=False, style="red")
        raise typer.Exit(1) from error
    for name, ratio in report.ratios.items():
        shown = f"{name}: {ratio['median']:.4g} ({ratio['min']:.4g} to {ratio['max']:.4g})"
        console.print(f"{shown} {report.bars.get(name, '')}")


def _measure(report: Report, cases: list[str], config_path: Path, json_path: Path, quick: bool) -> None:
    """What is measured is kept, whatever happens to the next case."""
    pairs = QUICK_PAIRS if quick else PAIRS
    for name in JUDGES:
        if name not in cases:
            continue
        with tempfile.TemporaryDirectory(prefix="tribes-online-") as plain:
            folder = Path(plain) / name
            if name == engine.CASE:
                engine.measure_engine(report, load_config(config_path), folder, pairs, console.log)
            elif name == replicas.CASE:
                seconds = QUICK_REPLICAS_S if quick else REPLICAS_S
                replicas.measure_replicas(report, folder, pairs, seconds, console.log)
            else:
                ray_llm.measure_ray_llm(report, load_config(config_path), folder, pairs, console.log)
        judge(report)
        report.write(json_path)


def keep_other_cases(report: Report, before: dict[str, Any], cases: list[str]) -> None:
    """Pairs are paired within their case, so cases that were measured at other times may stand in one file."""
    report.runs += [run for run in before["runs"] if run["case"] not in cases]
    report.config = {name: config for name, config in before["config"].items() if name not in cases}
    report.command = f"{before['command']}; {report.command}"


def judge(report: Report) -> None:
    """Ratios and bars of the cases that were measured."""
    measured = {run["case"] for run in report.runs}
    for case, judge_case in JUDGES.items():
        if case in measured:
            judge_case(report)


if __name__ == "__main__":
    typer.run(main)

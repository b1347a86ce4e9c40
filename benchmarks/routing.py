"""Does a session find its cache again, and does that ever cost more than it saves?

A deterministic model of engines with prefix caches (routing_sides/engine_model.py) under the dispatcher's own queue
and under random choice, round robin, least loaded, the published cache_aware rule (two sets of defaults) and sessions
alone. Loads: multi-turn chats of users with Zipf's rates, on MT-bench's questions, another for each repetition; and the
Mooncake trace, its arrivals moved by up to half a second from the second repetition on. Two and four replicas, moderate
and high load (routing_sides/scenarios.py); figures in routing_sides/metrics.py. Then what it costs the processor. One
core, some minutes.

`python -m benchmarks.routing --json FILE [--quick] [--data FOLDER] [--plots FOLDER]`
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.report import Report
from benchmarks.routing_sides import cost, workload
from benchmarks.routing_sides import scenarios as setting
from benchmarks.routing_sides.plot import plot
from benchmarks.routing_sides.scenarios import OURS, Scenario
from benchmarks.routing_sides.workload import CHAT_FILE, TRACE_FILE
from cluster.scheduling import RoutingPolicy

REPETITIONS = {"chat": 5, "mooncake": 3, "chat_saturated": 3}
QUICK_REPETITIONS = {"chat": 3, "mooncake": 1, "chat_saturated": 1}
BARRED = ("chat", "mooncake")
"""Loads that can be served. Where somebody always waits, whose turn it is counts for more than where."""
COST_ROUNDS = 5
RIVALS = ("random", "round_robin", "least_loaded", "cache_aware", "cache_aware_library", "session_only")
HASHING_ROUNDS, REQUESTS = 2000, 20_000
Compare = Callable[[dict[str, Any], dict[str, Any]], float]
console = Console(stderr=True)


def main(
    json_path: Annotated[Path, typer.Option("--json", help="Where the result goes.")],
    quick: Annotated[bool, typer.Option(help="Fewer repetitions.")] = False,
    data: Annotated[Path, typer.Option(help=f"Folder that has {CHAT_FILE} and {TRACE_FILE}.")] = Path("../shared/data"),
    plots: Annotated[Path | None, typer.Option(help="Folder for plots.")] = None,
) -> None:
    for file in (CHAT_FILE, TRACE_FILE):
        if not (data / file).is_file():
            raise typer.BadParameter(f"no {file} in {data}; name the folder that has it", param_hint="--data")
    report = Report("routing", "python -m benchmarks.routing " + " ".join(sys.argv[1:]), described())
    simulate(report, setting.scenarios(), data, QUICK_REPETITIONS if quick else REPETITIONS)
    measure_cost(report, COST_ROUNDS)
    report.write(json_path)
    if plots is not None:
        plot(report.as_data(), plots)
    for name, ratio in report.ratios.items():
        shown = f"{name}: {ratio['median']:.4g} ({ratio['min']:.4g} to {ratio['max']:.4g})"
        console.print(f"{shown} {report.bars.get(name, '')}")


def described() -> dict[str, Any]:
    """The exact configuration of all sides."""
    at_once = "chosen when the request comes; waits in the engine"
    return {
        "engines": {"chat": asdict(setting.ENGINE), "mooncake": asdict(setting.TRACE_ENGINE)},
        "chat": {
            "questions": CHAT_FILE,
            "seconds": setting.CHAT_S,
            "first_seed": setting.FIRST_SEED,
            "slots_when_saturated": setting.FEW_SLOTS,
            "users_per_replica": setting.USERS_PER_REPLICA,
            "requests_per_s_and_replica": setting.CHAT_RATES,
            "zipf": workload.ZIPF,
            "least_s_between_questions": workload.FASTEST_S,
            "turns": workload.TURNS,
            "answer_tokens": [workload.ANSWER_TOKENS, workload.ANSWER_SIGMA, workload.LONGEST_ANSWER],
            "pasted": [workload.PASTED_SHARE, workload.PASTED_TOKENS, workload.PASTED_SIGMA, workload.LONGEST_PASTED],
            "system_prompts": workload.APPLICATIONS,
            "block_tokens": workload.CHAT_BLOCK,
        },
        "mooncake": {
            "file": TRACE_FILE,
            "requests": [setting.TRACE_FIRST, setting.TRACE_FIRST + setting.TRACE_REQUESTS],
            "prompt_tokens_over_prefill_rate": setting.TRACE_LOADS,
            "block_tokens": workload.TRACE_BLOCK,
        },
        "random": at_once,
        "round_robin": at_once,
        "least_loaded": f"fewest requests under way; {at_once}",
        **{
            name: f"threshold {threshold}, abs {absolute}, rel {relative}; {at_once}"
            for name, (threshold, absolute, relative) in setting.CACHE_AWARE.items()
        },
        "session_only": "the session's last replica while it has a slot, else fewest requests; waits in one line",
        OURS: {"routing": asdict(RoutingPolicy()), "fairness": "vtc", "prefix": False},
        setting.OURS_PREFIX: "the same with prefix hashes",
        setting.OURS_UNNAMED: "the same with prefix hashes and without sessions",
    }


def simulate(report: Report, scenarios: list[Scenario], data: Path, repetitions: Mapping[str, int]) -> None:
    """All simulated runs, their ratios and bars."""
    for scenario in scenarios:
        where = {"workload": scenario.workload, "load": scenario.load, "replicas": scenario.replicas}
        for repetition in range(repetitions[scenario.workload]):
            for side, figures in setting.run(scenario, data, repetition):
                report.add(repetition, side, **where, **figures)
                console.log(
                    f"{scenario.workload} {scenario.load} x{scenario.replicas} #{repetition} {side}: "
                    f"hit {figures['hit_rate']:.3f} of {figures['ceiling']:.3f}, "
                    f"ttft {figures['ttft_p50_s']:.3f}/{figures['ttft_p95_s']:.3f} s"
                )
    for name in dict.fromkeys(scenario.workload for scenario in scenarios):
        _compare(report, name)


def _compare(report: Report, name: str) -> None:
    """Over all scenarios and repetitions of a workload: each run of one side with the other's of the same load."""
    _pool(report, f"hit_rate_of_ceiling_{name}", name, OURS, OURS, lambda own, _: own["hit_rate_of_ceiling"])
    for rival in RIVALS:
        _pool(report, f"ttft_p95_vs_{rival}_{name}", name, OURS, rival, _p95)
    if name in BARRED:
        report.bar(f"hit_rate_of_ceiling_{name}", ">= 0.9", lambda got: got >= 0.9)
        for rival in RIVALS:
            report.bar(f"ttft_p95_vs_{rival}_{name}", "< 1", lambda got: got < 1)
    _pool(report, f"ttft_p95_prefix_vs_default_{name}", name, setting.OURS_PREFIX, OURS, _p95)
    _pool(report, f"ttft_p95_unnamed_vs_least_loaded_{name}", name, setting.OURS_UNNAMED, "least_loaded", _p95)
    _pool(report, f"ttft_p95_unnamed_vs_cache_aware_{name}", name, setting.OURS_UNNAMED, "cache_aware", _p95)


def _p95(own: dict[str, Any], other: dict[str, Any]) -> float:
    return own["ttft_p95_s"] / other["ttft_p95_s"]


def _pool(report: Report, name: str, workload_name: str, side: str, other: str, how: Compare) -> None:
    runs = {
        (r["load"], r["replicas"], r["pair"], r["side"]): r for r in report.runs if r.get("workload") == workload_name
    }
    values = [how(run, runs[*place, other]) for (*place, one), run in runs.items() if one == side]
    report.ratios[name] = {"median": median(values), "min": min(values), "max": max(values)}


def measure_cost(report: Report, rounds: int) -> None:
    """Microseconds of the processor, in gateways and in the dispatcher."""
    for number in range(rounds):
        for prompt_bytes in cost.PROMPT_BYTES:
            report.add(number, f"hash_{prompt_bytes}_bytes", us=cost.hashing_us(prompt_bytes, HASHING_ROUNDS))
        for kind in cost.KINDS:
            report.add(number, f"request_{kind}", us=cost.request_us(kind, REQUESTS))
    for side in dict.fromkeys(run["side"] for run in report.runs if "us" in run):
        report.compare(f"{side}_us", "us", side, side, lambda got, _: got)


if __name__ == "__main__":
    typer.run(main)

"""How fast is the shared queue, and what does it do when ten times too much is asked of it?

Four questions, each round anew: decisions of the policy alone on one core; leases a second through a live dispatcher
actor and real lease clients, every one decided centrally (contended) or prepaid (capacity is free); what queueing adds
to a request while capacity is free; and how much is finished in time (goodput) when 1x to 10x of the capacity is
offered. Engines are stood for by a holding time. `python -m benchmarks.dispatcher --json FILE [--quick]`
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import ray
import typer
from rich.console import Console

from benchmarks.dispatcher_load import Crowd, Overload, decisions_per_s
from benchmarks.report import Report
from cluster.config import TribesConfig
from cluster.state import Store
from serve_apps.leases import LeaseClient
from serve_apps.messages import ReplicaReport
from serve_apps.names import NAMESPACE, ensure_dispatcher

MODEL, DEPLOYMENT = "m", "d"
REPLICAS, SLOTS = 8, 64
ROUNDS, QUICK_ROUNDS = 7, 3
SECONDS, QUICK_SECONDS = 4.0, 1.5
GATEWAYS = 2
OFFERED = (1.0, 2.0, 4.0, 10.0)
BARS = {
    "policy_decisions_per_s": (">= 100000", lambda got: got >= 100_000),
    "leases_per_s": (">= 5000", lambda got: got >= 5_000),
    "prepaid_leases_per_s": (">= 5000", lambda got: got >= 5_000),
    "queue_added_p50_ms": ("< 1", lambda got: got < 1),
    "goodput_at_10x_vs_peak": (">= 0.9", lambda got: got >= 0.9),
}
console = Console(stderr=True)


def main(
    json_path: Annotated[Path, typer.Option("--json", help="Where the result goes.")],
    quick: Annotated[bool, typer.Option(help="Three short rounds instead of seven.")] = False,
) -> None:
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if quick else (ROUNDS, SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder))
        report = Report("dispatcher", "python -m benchmarks.dispatcher " + " ".join(sys.argv[1:]), _described(config))
        for number in range(rounds):
            report.add(number, "policy", decisions_per_s=decisions_per_s(seconds))
        ray.init("local", num_cpus=2, namespace=NAMESPACE, include_dashboard=False, log_to_driver=False)
        try:
            asyncio.run(_live(config, report, rounds, seconds))
        finally:
            ray.shutdown()
    _sum_up(report)
    report.write(json_path)
    for name, ratio in report.ratios.items():
        bar = report.bars.get(name, {})
        console.print(f"{name}: {ratio['median']:.4g} ({ratio['min']:.4g} to {ratio['max']:.4g}) {bar}")


async def _live(config: TribesConfig, report: Report, rounds: int, seconds: float) -> None:
    plain = config.model_dump(mode="json")
    dispatcher = ensure_dispatcher(plain, MODEL)
    reporting = asyncio.create_task(_report_forever(dispatcher))
    clients = [LeaseClient(dispatcher, f"bench-{number}") for number in range(GATEWAYS)]
    try:
        for client in clients:
            client.start()
        await Crowd(clients, workers=64, hold_s=0.0).run(1.0)  # imports, first calls
        for number in range(rounds):
            for side, figures in (await _round(clients, seconds)).items():
                report.add(number, side, **figures)
                console.log(f"round {number} {side}: { {k: round(v, 3) for k, v in figures.items()} }")
            await _overload(clients, report, number, seconds)
    finally:
        for client in clients:
            await client.close()
        reporting.cancel()
        ray.kill(dispatcher)


async def _round(clients: list[LeaseClient], seconds: float) -> dict[str, dict[str, float]]:
    slots = REPLICAS * SLOTS
    return {
        # More workers than slots: somebody always waits, so every lease is decided by the dispatcher.
        "contended": await Crowd(clients, workers=slots * 3 // 2, hold_s=0.0).run(seconds),
        # A third of the slots in use.
        "prepaid": await Crowd(clients, workers=slots // 3, hold_s=0.0).run(seconds),
        # As a gateway under a usual load: a few hundred requests a second that run for a while.
        "free": await Crowd(clients, workers=slots // 10, hold_s=0.1).run(seconds),
        # The same for a tenant with limits, which is always decided by the dispatcher.
        "free_central": await Crowd(clients, workers=slots // 10, hold_s=0.1, tenant="limited").run(seconds),
    }


async def _overload(clients: list[LeaseClient], report: Report, number: int, seconds: float) -> None:
    for factor in OFFERED:
        figures = await Overload(clients, slots=REPLICAS * SLOTS, factor=factor).run(seconds)
        report.add(number, "overload", factor=factor, **figures)
        console.log(f"round {number} offered {factor:g}x: { {k: round(v, 3) for k, v in figures.items()} }")


async def _report_forever(dispatcher: Any) -> None:
    """In the place of replica actors."""
    while True:
        for number in range(REPLICAS):
            address = f"http://127.0.0.1:{9000 + number}"
            replica = ReplicaReport(f"r{number}", DEPLOYMENT, "ready", time.time(), base_url=address, api_key="key")
            await dispatcher.report.remote(replica)
        await asyncio.sleep(1.0)


def _sum_up(report: Report) -> None:
    def take(name: str, side: str, metric: str) -> None:
        values = [run[metric] for run in report.runs if run["side"] == side]
        report.ratios[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)}

    take("policy_decisions_per_s", "policy", "decisions_per_s")
    take("leases_per_s", "contended", "leases_per_s")
    take("prepaid_leases_per_s", "prepaid", "leases_per_s")
    take("queue_added_p50_ms", "free", "wait_p50_ms")
    take("queue_added_p99_ms", "free", "wait_p99_ms")
    take("central_added_p50_ms", "free_central", "wait_p50_ms")
    ratios = []
    for number in {run["pair"] for run in report.runs}:
        goodput = {r["factor"]: r["goodput_per_s"] for r in report.runs if r["pair"] == number and "factor" in r}
        ratios.append(goodput[OFFERED[-1]] / max(goodput.values()))
    report.ratios["goodput_at_10x_vs_peak"] = {
        "median": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
    }
    for name, (need, holds) in BARS.items():
        report.bar(name, need, holds)


def _config(folder: Path) -> TribesConfig:
    deployment = {"model": MODEL, "serves": ["online"], "engine": {"kind": "vllm"}, "max_running": SLOTS}
    config = TribesConfig.model_validate(
        {
            "models": {MODEL: {"source": {"kind": "local", "path": str(folder)}}},
            "deployments": {DEPLOYMENT: deployment},
            "tenants": {
                **{f"tenant-{number}": {} for number in range(16)},
                "limited": {"limits": {"max_concurrent": 100_000}},
            },
            "scheduling": {"classes": {"online": {"max_queued": 512, "max_wait_s": 2}}},
            "state": {"url": f"sqlite:///{folder}/state.db"},
        }
    )
    store = Store(config.state.url)
    store.create()
    store.add_tenants({name: tenant.model_dump(mode="json") for name, tenant in config.tenants.items()})
    store.close()
    return config


def _described(config: TribesConfig) -> dict[str, Any]:
    return {
        "scheduling": config.scheduling.model_dump(mode="json"),
        "replicas": REPLICAS,
        "slots_per_replica": SLOTS,
        "gateways": GATEWAYS,
        "path": "lease client (in the benchmark's process) -> Ray actor call -> dispatcher actor",
    }


if __name__ == "__main__":
    typer.run(main)

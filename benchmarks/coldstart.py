"""How soon does the first token come after scale-from-zero, forked and cold?

Both sides start the same engine server of one deployment with the same arguments and ask it once; the clock runs from
the decision to start to the first token. Cold is the fastest plain start: vLLM with one process less than by default
(`VLLM_ENABLE_V1_MULTIPROCESSING=0`, which the forked engine has too), SGLang as it is. Files are in the page cache on
both sides, as one start before the first pair sees to. The fork host is up before the pairs; its start and its memory
are in the result. `python -m benchmarks.coldstart --json FILE`
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.report import Report
from cluster.coldstart.fork_server import ForkServer, plan_for
from cluster.coldstart.measure import MeasuredEngine
from cluster.coldstart.report import spec_maker
from cluster.config import TribesConfig, load_config
from cluster.engines import LaunchSpec

BAR = 5.0
GIB = 2**30
FASTEST = {"vllm": {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}, "sglang": {}}
"""What is added to the environment for the fastest plain start."""
console = Console(stderr=True)
log = logging.getLogger("tribes.coldstart")


def main(
    json_path: Annotated[Path, typer.Option("--json", help="Where the result goes.")],
    config_path: Annotated[Path, typer.Option("--config")] = Path("configs/local.yaml"),
    deployment: Annotated[str, typer.Option(help="A deployment without GPUs.")] = "smollm2-burst",
    quick: Annotated[bool, typer.Option(help="Three pairs instead of five.")] = False,
) -> None:
    report = asyncio.run(_run(load_config(config_path), deployment, 3 if quick else 5))
    report.write(json_path)
    console.print(report.ratios, report.bars)


async def _run(config: TribesConfig, name: str, pairs: int) -> Report:
    kind = config.deployments[name].engine.kind
    make_spec = _fastest(config, name)
    plan = plan_for(make_spec(0))
    if plan is None:
        raise SystemExit(f"{name} cannot be forked; `tribes coldstart -d {name}` says why")
    report = Report(
        "coldstart",
        "python -m benchmarks.coldstart " + " ".join(sys.argv[1:]),
        {
            "deployment": config.deployments[name].model_dump(mode="json"),
            "both": {"argv": _argv(make_spec(0)), "env_added": FASTEST[kind]},
            "fork": "from a fork host that has imported the engine and the model's classes",
            "cold": "python -m, files in the page cache",
        },
    )
    server = ForkServer(plan, log)
    try:
        await server.until_ready()
        host = {"host_ready_s": server.ready_in_s, "host_gib": server.memory().pss_bytes / GIB}
        console.log("fork host", host)
        await _start(kind, make_spec, None)
        for pair in range(pairs):
            for side, socket in (("fork", server.socket), ("cold", None))[:: -1 if pair % 2 else 1]:
                report.add(pair, side, **await _start(kind, make_spec, socket), **(host if side == "fork" else {}))
                console.log(report.runs[-1])
    finally:
        await server.stop()
    report.compare("cold_vs_fork", "first_token_s", "cold", "fork", lambda cold, fork: cold / fork)
    report.bar("cold_vs_fork", f">= {BAR:g}", lambda ratio: ratio >= BAR)
    _summarise(report)
    return report


def _fastest(config: TribesConfig, name: str) -> Callable[[int], LaunchSpec]:
    deployment = config.deployments[name]
    env = {**deployment.engine.env, **FASTEST[deployment.engine.kind]}
    engine = deployment.engine.model_copy(update={"env": env})
    return spec_maker(config, deployment.model_copy(update={"engine": engine}), console.log)


def _argv(spec: LaunchSpec) -> list[str]:
    """Without what is only of this machine."""
    return ["python", *(part.replace(spec.model_path, spec.served_model_name) for part in spec.argv[1:])]


async def _start(kind: str, make_spec: Callable[[int], LaunchSpec], socket: Path | None) -> dict[str, Any]:
    engine = MeasuredEngine(kind, make_spec, socket)
    try:
        start = await engine.start()
        memory = engine.memory()
    finally:
        await engine.stop()
    return {
        "first_token_s": start.first_token_s,
        "routable_s": start.routable_s,
        **{f"{stage}_s": seconds for stage, seconds in start.stages.items() if stage != "routable"},
        "replica_gib": memory.pss_bytes / GIB,
        "replica_shared_gib": memory.shared_bytes / GIB,
    }


def _summarise(report: Report) -> None:
    """The absolute figures beside the ratio, over the pairs."""
    for side, metric in (
        ("fork", "first_token_s"),
        ("cold", "first_token_s"),
        ("fork", "replica_gib"),
        ("cold", "replica_gib"),
        ("fork", "host_gib"),
    ):
        report.compare(f"{side}_{metric}", metric, side, side, lambda value, _: value)


if __name__ == "__main__":
    typer.run(main)

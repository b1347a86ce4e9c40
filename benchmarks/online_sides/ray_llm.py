"""Case `ray_serve_llm`: this project with everything on against ray.serve.llm tuned, on the same vLLM.

Two clusters side by side, of which only one is loaded at a time; what the other one uses meanwhile is measured before
(`idle_cores`). Owns: its configuration, its ratios. Must not know: how either cluster is started.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import typer

from benchmarks.gateway_sides import accounts
from benchmarks.load import Target
from benchmarks.online_sides.ours import tribes
from benchmarks.online_sides.ray_llm_cluster import ray_serve_llm
from benchmarks.online_sides.real_load import CALM, DESCRIBED, SATURATION, measure_pairs, warm_up
from benchmarks.report import Report
from cluster.config import DeploymentConfig, TribesConfig
from cluster.engines.arguments import normalise
from cluster.local import read_run
from cluster.vocabulary import RequestClass

CASE = "ray_serve_llm"
TRIBES, PEER = "tribes", "ray_serve_llm"
IDLE_S = 10.0


def measure_ray_llm(report: Report, config: TribesConfig, folder: Path, pairs: int, say: Callable[[str], None]) -> None:
    """All runs of the case. The peer starts first: it takes longest, and is the likelier one to fail."""
    config = vllm_config(config)
    (deployment,) = config.deployments.values()
    with (
        ray_serve_llm(config, folder / PEER, say) as peer,
        tribes(config, folder / TRIBES, say) as (ours, started),
    ):
        targets = {TRIBES: Target(started.api_url.removesuffix("/v1"), started.api_key), PEER: peer.target}
        asyncio.run(warm_up(targets, deployment.model))
        run = read_run(ours)
        assert run is not None
        report.config[CASE] = {
            TRIBES: {
                "deployment": deployment.model_dump(mode="json"),
                "gateway": ours.gateway.model_dump(mode="json"),
                "haproxy": ours.ray.haproxy,
            },
            PEER: dict(peer.shown),
            "idle_cores": {TRIBES: idle_cores(run.pid), PEER: idle_cores(peer.head_pid)},
            **DESCRIBED,
        }
        asyncio.run(measure_pairs(report, CASE, targets, deployment.model, pairs, say))


def vllm_config(config: TribesConfig) -> TribesConfig:
    """`config` with its first vLLM server that needs no GPU alone: online, one replica, and neither slots of ours nor
    of the engine's that could bound the load. It must be the vLLM of this interpreter, which the peer loads."""
    found = [(name, item) for name, item in config.serving().items() if _same_for_both(item)]
    if not found:
        need = "needs a vLLM deployment with a server, on CPUs, without engine.python and engine.entrypoint"
        raise typer.BadParameter(need, param_hint="--config")
    name, item = found[0]
    plain = config.model_dump(mode="json")
    chosen = plain["deployments"][name]
    chosen["engine"]["args"] = {**normalise(item.engine.args), "max-num-seqs": SATURATION}
    chosen |= {
        "serves": [RequestClass.ONLINE],
        "replicas": {**chosen["replicas"], "min": 1, "max": 1},
        "max_running": SATURATION,
    }
    plain["deployments"] = {name: chosen}
    plain["ray"]["haproxy"] = True
    return TribesConfig.model_validate(plain)


def _same_for_both(item: DeploymentConfig) -> bool:
    engine = item.engine
    return engine.kind == "vllm" and not (engine.python or engine.entrypoint or item.resources.gpus)


def idle_cores(head_pid: int) -> float:
    """CPU seconds a second that a cluster uses while nobody asks it."""
    before = accounts.read(accounts.tree(head_pid))
    time.sleep(IDLE_S)
    return sum(accounts.used_s(before, accounts.read(accounts.tree(head_pid))).values()) / IDLE_S


def judge_ray_llm(report: Report) -> None:
    """Ratios of the case, and the one bar: to match it."""
    for name, metric, concurrency in (
        ("tokens_per_s_vs_ray_serve_llm", "tokens_per_s", SATURATION),
        ("ttft_p50_vs_ray_serve_llm", "ttft_p50_ms", CALM),
        ("itl_p50_vs_ray_serve_llm", "itl_p50_ms", CALM),
    ):
        where = {"case": CASE, "concurrency": concurrency}
        report.compare(name, metric, TRIBES, PEER, lambda mine, theirs: mine / theirs, **where)
    report.bar("tokens_per_s_vs_ray_serve_llm", ">= 0.97", lambda got: got >= 0.97)

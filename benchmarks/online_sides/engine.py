"""Case `engine`: what the gateway costs on the engine of the first online deployment of a configuration.

Sides: the engine asked directly on its own port with its own key; through Serve's endpoint behind HAProxy; through the
gateway's own listener. All three are one cluster. Owns: its configuration, its ratios. Must not know: the load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import typer

from benchmarks.load import Target
from benchmarks.online_sides.ours import heed_sigterm, tribes
from benchmarks.online_sides.real_load import CALM, DESCRIBED, SATURATION, measure_pairs
from benchmarks.relay import direct_target
from benchmarks.report import Report
from cluster.config import TribesConfig
from cluster.vocabulary import RequestClass

CASE = "engine"
BARE, SERVE_DOOR, OWN_DOOR = "bare", "tribes", "tribes_own_door"


def measure_engine(report: Report, config: TribesConfig, folder: Path, pairs: int, say: Callable[[str], None]) -> None:
    """All runs of the case."""
    config = engine_config(config)
    (name,) = config.deployments
    model = config.deployments[name].model
    with tribes(config, folder, say) as (config, started):
        targets = {
            BARE: direct_target(config, model),
            SERVE_DOOR: Target(started.api_url.removesuffix("/v1"), started.api_key),
            OWN_DOOR: Target(f"http://{config.gateway.host}:{config.gateway.own_door.port}", started.api_key),
        }
        heed_sigterm()  # the bare engine's address was learned through Ray
        report.config[CASE] = {
            "deployment": config.deployments[name].model_dump(mode="json"),
            "gateway": config.gateway.model_dump(mode="json"),
            "haproxy": config.ray.haproxy,
            **DESCRIBED,
        }
        asyncio.run(measure_pairs(report, CASE, targets, model, pairs, say))


def engine_config(config: TribesConfig) -> TribesConfig:
    """`config` with its first online deployment alone, a slot for every request of the load, and the own listener."""
    found = [(name, item) for name, item in config.serving().items() if item.own_class is RequestClass.ONLINE]
    if not found:
        raise typer.BadParameter("needs a deployment that serves [online]", param_hint="--config")
    name, item = found[0]
    plain = config.model_dump(mode="json")
    plain["deployments"] = {name: {**plain["deployments"][name], "max_running": max(SATURATION, item.max_running)}}
    plain["gateway"]["own_door"]["port"] = plain["gateway"]["own_door"]["port"] or 1  # `isolated` takes a free one
    return TribesConfig.model_validate(plain)


def judge_engine(report: Report) -> None:
    """Ratios and bars of the case."""
    for prefix, side in (("", SERVE_DOOR), ("own_door_", OWN_DOOR)):
        for name, metric, concurrency in (
            ("tokens_per_s_vs_bare", "tokens_per_s", SATURATION),
            ("itl_p50_vs_bare", "itl_p50_ms", CALM),
        ):
            where = {"case": CASE, "concurrency": concurrency}
            report.compare(prefix + name, metric, side, BARE, lambda mine, bare: mine / bare, **where)
    report.bar("tokens_per_s_vs_bare", ">= 0.97", lambda got: got >= 0.97)
    report.bar("itl_p50_vs_bare", "<= 1.03", lambda got: got <= 1.03)

"""Role: measure the whole ladder of one deployment on this machine. Owns: the order of the steps and their result.

One start of each rung: figures to choose by; `benchmarks.coldstart` is the place for claims. Must not know: tables.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

from cluster.coldstart import sleeping
from cluster.coldstart.capabilities import available_bytes, rungs_of
from cluster.coldstart.fork_server import ForkServer, plan_for
from cluster.coldstart.ladder import Rung, RungName, choose
from cluster.coldstart.measure import MeasuredEngine, Start
from cluster.coldstart.memory import Memory
from cluster.config import DeploymentConfig, TribesConfig
from cluster.engines import LaunchSpec, build_spec, new_api_key
from cluster.models import prepare_model

GIB = 2**30
MakeSpec = Callable[[int], LaunchSpec]
log = logging.getLogger("tribes.coldstart")


async def measure_ladder(config: TribesConfig, name: str, progress: Callable[[str], None]) -> dict[str, Any]:
    """Every rung that the deployment has here: seconds, stages, memory; and which to use in the memory that is free."""
    deployment = config.deployments[name]
    make_spec = spec_maker(config, deployment, progress)
    rungs = {rung.name: rung for rung in rungs_of(deployment, make_spec(0))}
    able = {rung: item.why_not is None for rung, item in rungs.items()}
    figures: dict[RungName, dict[str, Any]] = {}
    if able["asleep"]:
        kind = deployment.engine.kind
        deployment = _with(deployment, sleeping.ARGS[kind], sleeping.ENV[kind])
        make_spec = spec_maker(config, deployment, progress)
    kind = deployment.engine.kind
    progress(f"{name}: a cold start")
    figures |= await _cold(kind, make_spec, able["asleep"])
    if able["forked"]:
        progress(f"{name}: a fork host, and an engine from it")
        figures |= await _forked(kind, make_spec)
    free = available_bytes()
    known = [_known(rung, figures.get(rung.name)) for rung in rungs.values()]
    shown = [
        {"rung": item.name, "why_not": item.why_not, "held_gib": item.held_bytes / GIB, **figures.get(item.name, {})}
        for item in known
    ]
    return {
        "deployment": name,
        "model": deployment.model,
        "engine": kind,
        "free_gib": free / GIB,
        "best": choose(known, free).name,
        "best_holding_nothing": choose(known, 0).name,
        "rungs": shown,
    }


def spec_maker(config: TribesConfig, deployment: DeploymentConfig, progress: Callable[[str], None]) -> MakeSpec:
    """How a replica of this deployment is started here; prepares the model first."""
    model = config.models[deployment.model]
    prepared = prepare_model(deployment.model, model, config.paths, progress)
    if deployment.engine.kind == "sglang":
        deployment = _with(deployment, {"log-level": "info"}, {})  # at its default here it does not say what it does
    key = new_api_key()

    def make(port: int) -> LaunchSpec:
        return build_spec(
            deployment,
            deployment.model,
            prepared.path_or_id,
            "127.0.0.1",
            port,
            key,
            max_model_len=model.max_model_len,
            revision=prepared.revision,
        )

    return make


async def _cold(kind: str, make_spec: MakeSpec, sleeps: bool) -> dict[RungName, dict[str, Any]]:
    """The cold start, and what the engine then shows of the rungs above: resident, asleep."""
    engine = MeasuredEngine(kind, make_spec)
    try:
        cold = _figures(await engine.start())
        replica = engine.memory()
        resident = _figures(await engine.again(), held=replica)
        asleep: dict[RungName, dict[str, Any]] = {}
        if sleeps:
            start, held = await engine.asleep()
            asleep = {"asleep": _figures(start, held=held)}
    finally:
        await engine.stop()
    return {"resident": resident, **asleep, "cold": {**cold, **_memory(replica)}}


async def _forked(kind: str, make_spec: MakeSpec) -> dict[RungName, dict[str, Any]]:
    plan = plan_for(make_spec(0))
    assert plan is not None  # the rung is there only where there is one
    server = ForkServer(plan, log)
    engine = None
    try:
        await server.until_ready()
        alone = server.memory()
        engine = MeasuredEngine(kind, make_spec, server.socket)
        start = await engine.start()
        replica = engine.memory()
    finally:
        if engine is not None:
            await engine.stop()
        await server.stop()
    host = {"host_ready_s": server.ready_in_s}
    return {"forked": {**_figures(start, held=alone), **_memory(replica), **host}}


def _with(deployment: DeploymentConfig, args: Mapping[str, Any], env: Mapping[str, str]) -> DeploymentConfig:
    engine = deployment.engine
    more = {"args": {**engine.args, **args}, "env": {**engine.env, **env}}
    return deployment.model_copy(update={"engine": engine.model_copy(update=more)})


def _figures(start: Start, held: Memory | None = None) -> dict[str, Any]:
    return {**dataclasses.asdict(start), "held_bytes": 0 if held is None else held.pss_bytes}


def _memory(replica: Memory) -> dict[str, float]:
    return {"replica_gib": replica.pss_bytes / GIB, "shared_gib": replica.shared_bytes / GIB}


def _known(rung: Rung, figures: dict[str, Any] | None) -> Rung:
    """The rung with what was measured. One that nobody could measure is not used."""
    if figures is None:
        return dataclasses.replace(rung, why_not=rung.why_not or "not measured")
    held = figures.pop("held_bytes")
    return dataclasses.replace(rung, seconds=figures["first_token_s"], held_bytes=held)

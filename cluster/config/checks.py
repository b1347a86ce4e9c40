"""Role: the rules that tie sections together. Owns: every cross-field check and its message.

Must not know: YAML, files or the root class. The checks read plain data and skip values of the wrong type, so they also
work on a file whose shape is wrong elsewhere: all problems show at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from cluster.config.deployments import DeploymentConfig, ReplicasConfig
from cluster.config.errors import KeyPath, Problem, unknown_reference
from cluster.config.preset_checks import preset_problems
from cluster.config.resolve import DATA_PLACEHOLDER
from cluster.config.scheduling import CLASS_DEFAULTS, SchedulingConfig
from cluster.config.services import GatewayConfig, OwnDoorConfig, RayConfig
from cluster.config.upstream_checks import upstream_problems
from cluster.vocabulary import RequestClass

Data = Mapping[str, Any]

_PLACEHOLDER = re.compile(r"\{[^{}]*\}")


def cross_problems(data: Data) -> list[Problem]:
    """Every broken rule between keys of a configuration given as plain data."""
    problems: list[Problem] = []
    for name, deployment in _sections(data, "deployments"):
        path: KeyPath = ("deployments", name)
        problems += _check_references(path, deployment, data)
        problems += _check_serves(path, deployment)
        problems += _check_replicas((*path, "replicas"), _section(deployment, "replicas"))
        problems += _check_engine_args((*path, "engine", "args"), _section(_section(deployment, "engine"), "args"))
        problems += _check_start((*path, "engine", "start"), deployment)
        problems += preset_problems(path, deployment, data)
    problems += _check_models_run(data)
    problems += upstream_problems(data)
    problems += _check_region(data)
    problems += _check_ports(data)
    problems += _check_floors(data)
    problems += _check_placeholders(data)
    return problems


def _section(data: Data, key: str) -> Data:
    value = data.get(key)
    return value if isinstance(value, Mapping) else {}


def _sections(data: Data, key: str) -> Iterator[tuple[str, Data]]:
    return ((str(name), value) for name, value in _section(data, key).items() if isinstance(value, Mapping))


def _value(section: type[BaseModel], data: Data, key: str) -> Any:
    """What the key will be: as given, or the schema's default."""
    return data[key] if key in data else section.model_fields[key].get_default(call_default_factory=True)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_references(path: KeyPath, deployment: Data, data: Data) -> Iterator[Problem]:
    model, models = deployment.get("model"), data.get("models")
    if isinstance(model, str) and isinstance(models, Mapping) and model not in models:
        yield Problem((*path, "model"), unknown_reference("model", model, models))
    pool, pools = _value(DeploymentConfig, deployment, "pool"), data.get("pools", {"default": {}})
    if isinstance(pool, str) and isinstance(pools, Mapping) and pool not in pools:
        default = "" if "pool" in deployment else " (the default, as none is named)"
        yield Problem((*path, "pool"), unknown_reference("pool", pool, pools) + default)


def _check_start(path: KeyPath, deployment: Data) -> Iterator[Problem]:
    engine = _section(deployment, "engine")
    plain = engine.get("entrypoint") is None and not _section(deployment, "resources").get("gpus")
    if engine.get("start") == "fork" and not plain:
        cure = "write cold, or auto: fork where that is possible"
        yield Problem(path, f"only engines without GPUs, started by their own command, can be forked; {cure}")


def _check_serves(path: KeyPath, deployment: Data) -> Iterator[Problem]:
    serves = deployment.get("serves")
    if not isinstance(serves, list):
        return
    repeated = sorted({str(item) for item in serves if serves.count(item) > 1})
    if repeated:
        yield Problem((*path, "serves"), f"{', '.join(repeated)} is listed more than once; list each class once")
    kind = _section(deployment, "engine").get("kind")
    if serves == [RequestClass.OFFLINE] and kind == "sglang":
        yield Problem(
            (*path, "engine", "kind"),
            "serves [offline] alone runs inside batch jobs, which needs kind: vllm; use it or serve another class",
        )


def _check_replicas(path: KeyPath, replicas: Data) -> Iterator[Problem]:
    low, high = _value(ReplicasConfig, replicas, "min"), _value(ReplicasConfig, replicas, "max")
    if _is_number(low) and _is_number(high) and low > high:
        yield Problem((*path, "min"), f"min {low} is above max {high}; raise max or lower min")


def _check_engine_args(path: KeyPath, args: Data) -> Iterator[Problem]:
    """Only the spelling: what the arguments mean is the engine's business."""
    spelt: dict[str, str] = {}
    for name in map(str, args):
        bare = name.lstrip("-").replace("_", "-")
        if name.startswith("-"):
            yield Problem((*path, name), f"write it without leading dashes: {name.lstrip('-')}")
        if bare in spelt:
            yield Problem((*path, name), f"is the same argument as {spelt[bare]}; keep one of them")
        spelt.setdefault(bare, name)


def _check_models_run(data: Data) -> Iterator[Problem]:
    models, deployments = _section(data, "models"), data.get("deployments")
    if not isinstance(deployments, Mapping):
        return
    used = [deployment.get("model") if isinstance(deployment, Mapping) else None for deployment in deployments.values()]
    if any(not isinstance(model, str) or model not in models for model in used):
        return  # a mistyped or missing reference, reported already, may be the one that this model lacks
    for model in models:
        if model not in used:
            cure = f"add a deployment with model: {model}, or remove it here"
            yield Problem(("models", str(model)), f"no deployment runs this model; {cure}")


def _check_region(data: Data) -> Iterator[Problem]:
    region, tenants = _section(data, "region"), data.get("tenants", {"default": {}})
    for name, peer in _sections(region, "peers"):
        if name == region.get("name"):
            yield Problem(("region", "peers", name), "is this region's own name; list the others only")
        for tenant in _section(peer, "keys"):
            if isinstance(tenants, Mapping) and tenant not in tenants:
                path: KeyPath = ("region", "peers", name, "keys", str(tenant))
                yield Problem(path, unknown_reference("tenant", tenant, tenants))


def _check_ports(data: Data) -> Iterator[Problem]:
    gateway = _section(data, "gateway")
    door = _section(gateway, "own_door")
    ports: list[tuple[KeyPath, Any]] = [
        (("gateway", "port"), _value(GatewayConfig, gateway, "port")),
        (("gateway", "own_door", "port"), _value(OwnDoorConfig, door, "port")),
    ]
    ray = _section(data, "ray")
    if ray.get("address") is None:  # a cluster that exists already keeps its ports on its own machines
        ports += [(("ray", key), _value(RayConfig, ray, key)) for key in ("port", "dashboard_port")]
    taken: dict[int, KeyPath] = {}
    for path, port in ports:
        if not _is_number(port):
            continue
        if port in taken:
            other = ".".join(map(str, taken[port]))
            yield Problem(path, f"port {port} is {other} already; choose another port")
        taken.setdefault(port, path)


def _check_floors(data: Data) -> Iterator[Problem]:
    classes = _section(_section(data, "scheduling"), "classes")
    floors: dict[str, float] = {}
    for request_class, default in CLASS_DEFAULTS.items():
        floor = _section(classes, request_class).get("floor", default.floor)
        if not _is_number(floor):
            return
        floors[request_class] = floor
    raised_share = _section(data, "scheduling").get("raised_share", SchedulingConfig().raised_share)
    if sum(floors.values()) >= 1:
        parts = " + ".join(f"{name} {floor:g}" for name, floor in floors.items())
        path = ("scheduling", "classes")
        yield Problem(path, f"the floors add up to {sum(floors.values()):g} ({parts}); lower them to below 1")
    elif _is_number(raised_share) and sum(floors.values()) + raised_share >= 1:
        total = f"the floors ({sum(floors.values()):g}) and raised_share ({raised_share:g}) leave online nothing"
        yield Problem(("scheduling", "raised_share"), f"{total}; lower them to below 1 together")


def _check_placeholders(data: Data) -> Iterator[Problem]:
    for section in ("state", "files"):
        url = _section(data, section).get("url")
        if not isinstance(url, str):
            continue
        for unknown in _PLACEHOLDER.findall(url.replace(DATA_PLACEHOLDER, "")):
            yield Problem((section, "url"), f"unknown placeholder {unknown}; only {DATA_PLACEHOLDER} is known")

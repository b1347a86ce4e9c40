"""Role: from a plan to a configuration file that `tribes up` takes. Owns: which key gets what, and the file's comments.

The text is read by the real loader before it is kept. Must not know: how the plan was made, or what engines do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cluster.config import ConfigError, LocalFolder, ModelSource, Problem, TribesConfig, load_config
from cluster.planning.candidates import engine_args, preset_of
from cluster.planning.memory import MEMORY_SHARE
from cluster.planning.results import ClassPlan, Plan
from cluster.planning.shape import Shape
from cluster.planning.workload import PlanRequest
from cluster.vocabulary import RequestClass

_CPUS_PER_GPU: Final = 8
_NAMES: Final = str.maketrans(dict.fromkeys("/:@ _", "-"))


def write_config(plan: Plan, request: PlanRequest, path: Path, cluster: TribesConfig | None = None) -> None:
    """Write the file, unless the loader finds a problem in it. `cluster`: whose engine interpreters to use."""
    text = config_text(plan, request, cluster)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "plan.yaml"
        draft.write_text(text, encoding="utf-8")
        load_config(draft)
    path.write_text(text, encoding="utf-8")


def config_text(plan: Plan, request: PlanRequest, cluster: TribesConfig | None = None) -> str:
    """Raises ConfigError where nothing was chosen, or the model's source is not known."""
    import yaml  # type: ignore[import-untyped, unused-ignore]

    chosen = [item for item in plan.classes if item.chosen]
    if not chosen:
        raise ConfigError([Problem((), "no class can be served, so there is nothing to write")])
    if request.model.source is None:
        raise ConfigError([Problem(("model", "source"), "needed for a configuration; say where the weights are")])
    interpreters = _interpreters(cluster)
    models: dict[str, Any] = {}
    deployments: dict[str, Any] = {}
    pools: dict[str, Any] = {}
    for item in chosen:
        assert item.chosen
        shape = item.chosen.shape
        model = _model_name(request, shape)
        models[model] = _model(request, shape)
        name = f"{_name(model)}-{item.request_class.value.replace('_', '-')}"
        deployments[name] = _deployment(item, model, _pool_name(shape), interpreters)
        price = request.usd_per_gpu_hour[shape.accelerator]
        kind = {"accelerator_type": shape.accelerator} if _has_gpus(shape) else {}
        pools[_pool_name(shape)] = {**kind, "usd_per_hour": round(price, 6)}
    data = {"name": f"{_name(plan.model)}-plan", "models": models, "deployments": deployments, "pools": pools}
    return (
        _HEADER
        + "".join(f"#   {line}\n" for line in _summary(plan, request))
        + yaml.safe_dump(data, sort_keys=False, width=120)
    )


_HEADER: Final = """\
# Written by `tribes plan`. One deployment a class; usd_per_hour is the price of one GPU.
# Beside it you need: engine.python where vLLM and SGLang have interpreters of their own, tenants, and paths.data.
"""


def _summary(plan: Plan, request: PlanRequest) -> list[str]:
    return [
        f"{item.request_class.value}: {item.requests_per_s:g} requests/s, {item.chosen.replicas} replicas of "
        f"{item.chosen.shape.title}, {item.chosen.usd_per_hour:.2f} USD/h ({item.chosen.basis}), as "
        f"{_model_name(request, item.chosen.shape)}"
        for item in plan.classes
        if item.chosen
    ]


def _deployment(item: ClassPlan, model: str, pool: str, interpreters: Mapping[str, str]) -> dict[str, Any]:
    chosen = item.chosen
    assert chosen and chosen.replica
    shape, slots = chosen.shape, chosen.replica.slots
    levers = preset_of(shape, item.request_class).model_dump(mode="json", exclude_none=True)
    preset = {key: levers[key] for key in sorted(levers, key=lambda key: key != "name")}  # the name first
    # An engine inside a batch job runs in the job's own interpreter.
    offline = item.request_class == RequestClass.OFFLINE
    python = {} if offline or shape.engine not in interpreters else {"python": interpreters[shape.engine]}
    return {
        "model": model,
        "serves": [item.request_class.value],
        "engine": {
            "kind": shape.engine,
            **python,
            **_on_gpus(shape, {"preset": preset}),
            **_on_gpus(shape, {"args": engine_args(shape, slots, MEMORY_SHARE)}),
        },
        "pool": pool,
        "resources": {"cpus": _CPUS_PER_GPU * shape.gpus, "gpus": shape.gpus} if _has_gpus(shape) else {"cpus": 1},
        "replicas": _replicas(item),
        "max_running": slots,
    }


def _replicas(item: ClassPlan) -> dict[str, Any]:
    chosen = item.chosen
    assert chosen
    counts: dict[str, Any] = {"min": chosen.floor, "max": chosen.replicas}
    if item.request_class == RequestClass.SEMI_ONLINE and item.targets.ttft_s:
        counts["wait_target_s"] = item.targets.ttft_s
    return counts


def _has_gpus(shape: Shape) -> bool:
    return shape.accelerator != "CPU"


def _on_gpus(shape: Shape, section: dict[str, Any]) -> dict[str, Any]:
    """Presets and memory shares are those of GPUs; on a CPU the calibrated engine's own arguments belong here."""
    return section if _has_gpus(shape) else {}


def _model_name(request: PlanRequest, shape: Shape) -> str:
    """Another checkpoint is another model of the configuration."""
    suffix = {"fp8-stored": "fp8", "fp4-stored": "fp4"}.get(shape.quantisation)
    return f"{request.model.name}-{suffix}" if suffix and _other(request, shape) else request.model.name


def _model(request: PlanRequest, shape: Shape) -> dict[str, Any]:
    source = _other(request, shape) or request.model.source
    assert source is not None
    if isinstance(source, LocalFolder):  # it was relative to another file
        source = source.model_copy(update={"path": source.path.absolute()})
    length = {"max_model_len": request.model.max_model_len} if request.model.max_model_len else {}
    return {"source": source.model_dump(mode="json", exclude_none=True), **length}


def _other(request: PlanRequest, shape: Shape) -> ModelSource | None:
    return {"fp8-stored": request.model.fp8, "fp4-stored": request.model.fp4}.get(shape.quantisation)


def _pool_name(shape: Shape) -> str:
    return _name(shape.accelerator) + (f"-x{shape.gpus}" if shape.gpus > 1 else "")


def _name(text: str) -> str:
    """As names of deployments and pools may be."""
    return text.lower().translate(_NAMES).strip("-.")[:40]


def _interpreters(cluster: TribesConfig | None) -> dict[str, str]:
    if cluster is None:
        return {}
    engines = [item.engine for item in cluster.deployments.values()]
    return {engine.kind: engine.python for engine in engines if engine.python}

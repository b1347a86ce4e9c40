"""Role: the rules that tie a preset to the rest of its deployment. Owns: which engine, GPUs and pool it meets.

Must not know: what a lever means or needs (`cluster.presets`). As the other checks, it reads plain data and skips what
has the wrong shape, which is reported elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cluster.config.errors import KeyPath, Problem
from cluster.presets import Engine, PresetConfig, PresetOption, Target, obstacles

_DEFAULT_MAX_RUNNING = 16
_READ: TypeAdapter[PresetConfig | None] = TypeAdapter(PresetOption)


def preset_problems(path: KeyPath, deployment: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[Problem]:
    """Every lever of the deployment's preset that cannot be used there."""
    engine = _section(deployment, "engine")
    given, kind = engine.get("preset"), engine.get("kind")
    if given is None or kind not in ("vllm", "sglang"):
        return
    try:
        preset = _READ.validate_python(given)
    except ValidationError:
        return
    if preset is None:
        return
    args = {str(name): value for name, value in _section(engine, "args").items()}
    where = (*path, "engine", "preset")
    for lever, message in obstacles(preset, args, _target(kind, deployment, data)):
        written = isinstance(given, Mapping) and given.get(lever) is not None
        if written or preset.name is None:
            yield Problem((*where, lever), message)
        else:
            yield Problem(where, f"{preset.name} does not fit here: {message}, beside name: {preset.name}")


def _target(kind: Any, deployment: Mapping[str, Any], data: Mapping[str, Any]) -> Target:
    running, gpus = deployment.get("max_running"), _section(deployment, "resources").get("gpus")
    pool = deployment.get("pool", "default")
    accelerator = _section(_section(data, "pools"), pool if isinstance(pool, str) else "").get("accelerator_type")
    return Target(
        Engine(kind, running if isinstance(running, int) else _DEFAULT_MAX_RUNNING),
        float(gpus) if isinstance(gpus, int | float) else 0.0,
        accelerator if isinstance(accelerator, str) else None,
    )


def _section(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    return value if isinstance(value, Mapping) else {}

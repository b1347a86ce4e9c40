"""Role: which shapes of replica are tried for a class, and with which settings. Owns: that list.

Must not know: how good they are. What an accelerator can run is asked of the presets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from cluster.hardware import ACCELERATORS
from cluster.planning.facts import ModelFacts
from cluster.planning.shape import Quantisation, Shape
from cluster.presets import PRESETS, Engine, Generation, PresetConfig, Target, generation_of, obstacles
from cluster.presets.target import EngineKind
from cluster.vocabulary import RequestClass

# The lowest latency of the two for conversations; batch jobs load vLLM into their own processes.
ENGINES: Final[Mapping[RequestClass, tuple[EngineKind, ...]]] = {
    RequestClass.ONLINE: ("sglang", "vllm"),
    RequestClass.SEMI_ONLINE: ("vllm", "sglang"),
    RequestClass.OFFLINE: ("vllm",),
}
SLOTS: Final[Mapping[RequestClass, int]] = {
    RequestClass.ONLINE: 128,
    RequestClass.SEMI_ONLINE: 256,
    RequestClass.OFFLINE: 1024,
}
"""Sequences at once, at most: what a latency class wants and what still pays for throughput."""
_GOALS: Final[Mapping[RequestClass, tuple[str, ...]]] = {
    RequestClass.ONLINE: ("low-latency",),
    RequestClass.SEMI_ONLINE: ("burst", "throughput"),
    RequestClass.OFFLINE: ("throughput",),
}
_CHUNKS: Final[Mapping[RequestClass, int]] = {
    RequestClass.ONLINE: 2048,
    RequestClass.SEMI_ONLINE: 8192,
    RequestClass.OFFLINE: 8192,
}
"""Where no preset was made for the accelerator; and a burst wants its first tokens sooner than a batch."""


def shapes(
    accelerators: Mapping[str, float], facts: ModelFacts, engine: EngineKind, *, fp4: bool, fp8: bool
) -> Iterator[Shape]:
    """All shapes of the accelerators in the table; `fp8`, `fp4`: a checkpoint in that format is at hand."""
    for name in accelerators:
        if name not in ACCELERATORS:
            continue  # only a calibration knows it
        per_node = ACCELERATORS[name].per_node
        for tensor in (1, 2, 4, 8):
            if tensor > per_node or facts.heads % tensor:
                continue
            for stages in (1, 2, 4):
                if tensor * stages <= per_node and stages <= facts.layers:
                    for quantisation in _quantisations(facts, fp4=fp4, fp8=fp8):
                        eight_bits = quantisation in ("fp8", "fp8-stored", "fp4-stored")
                        yield Shape(name, engine, quantisation, tensor, stages, fp8_cache=eight_bits)


def _quantisations(facts: ModelFacts, *, fp4: bool, fp8: bool) -> Iterator[Quantisation]:
    match facts.stored:
        case "fp8":
            yield "fp8-stored"
        case "fp4":
            yield "fp4-stored"
        case "int4":
            yield "int4-stored"
        case _:
            yield "none"
            yield "fp8-stored" if fp8 else "fp8"
    if fp4 and facts.stored != "fp4":
        yield "fp4-stored"


def chunk_tokens(request_class: RequestClass, accelerator: str) -> int:
    """Tokens of prompts in one step."""
    named = preset_name(request_class, accelerator)
    most = _CHUNKS[request_class]
    chunk = (PRESETS[named].levers.chunked_prefill if named else None) or most
    return chunk if request_class == RequestClass.OFFLINE else min(chunk, most)


def preset_name(request_class: RequestClass, accelerator: str) -> Any:
    """The named preset that was made for the class and the generation, if there is one."""
    generation = generation_of(accelerator)
    for goal in _GOALS[request_class]:
        for name, preset in PRESETS.items():
            if generation is not None and preset.made_for == generation and name.startswith(goal):
                return name
    return None


def preset_of(shape: Shape, request_class: RequestClass) -> PresetConfig:
    """What the shape means in levers: a named preset, and what differs from it."""
    named = preset_name(request_class, shape.accelerator)
    levers = PRESETS[named].levers if named else None
    wanted: dict[str, Any] = {
        "tensor_parallel": shape.tensor_parallel,
        "quantisation": "none" if shape.quantisation == "int4-stored" else shape.quantisation,
        "kv_cache": "fp8" if shape.fp8_cache else "auto",
        "chunked_prefill": chunk_tokens(request_class, shape.accelerator),
    }
    if levers is None:
        wanted["mixed_batching"] = True
    # What the named preset says anyway, or an engine does by itself, need not be written.
    usual = {"tensor_parallel": 1, "quantisation": "none", "kv_cache": "auto"}
    differs = {k: v for k, v in wanted.items() if v != ((getattr(levers, k) if levers else None) or usual.get(k))}
    return PresetConfig.model_validate({"name": named, **differs})


def engine_args(shape: Shape, slots: int, memory_share: float) -> dict[str, Any]:
    """What no lever says, in the words of the engine."""
    old = (generation_of(shape.accelerator) or Generation.AMPERE) < Generation.AMPERE
    dtype = {"dtype": "half"} if old else {}  # bfloat16 came with Ampere
    if shape.engine == "vllm":
        stages = {"pipeline-parallel-size": shape.pipeline_parallel} if shape.pipeline_parallel > 1 else {}
        return {"gpu-memory-utilization": memory_share, "max-num-seqs": slots, **stages, **dtype}
    stages = {"pp-size": shape.pipeline_parallel} if shape.pipeline_parallel > 1 else {}
    return {"mem-fraction-static": memory_share, "max-running-requests": slots, **stages, **dtype}


def target_of(shape: Shape, slots: int) -> Target:
    return Target(Engine(shape.engine, slots), shape.gpus, shape.accelerator)


def obstacle(shape: Shape, request_class: RequestClass) -> str | None:
    """Why the accelerator cannot run the shape at all."""
    slots = SLOTS[request_class]
    found = obstacles(preset_of(shape, request_class), {}, target_of(shape, slots))
    return next((f"hardware: {message.partition(';')[0]}" for _, message in found), None)

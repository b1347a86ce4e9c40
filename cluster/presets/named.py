"""Role: the named presets. Owns: which levers go together for a goal on an accelerator. Must not know: arguments.

They are starting points from what the levers do, not measurements: measure your model on your hardware. None asks for
more than one GPU or for a second model; those are levers that a deployment adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cluster.presets.shape import Levers, PresetName
from cluster.presets.target import Generation


@dataclass(frozen=True, slots=True)
class Preset:
    """Levers for a goal."""

    goal: str
    made_for: Generation | None
    """None: CPUs."""
    levers: Levers


# A step of 2048 tokens is some tens of milliseconds on these GPUs, which is what a long prompt may add to a token.
_LATENCY: Final = {"chunked_prefill": 2048, "mixed_batching": True, "cuda_graphs": True, "prefix_caching": True}
_THROUGHPUT: Final = {**_LATENCY, "chunked_prefill": 16384}

PRESETS: Final[Mapping[PresetName, Preset]] = {
    "low-latency-cpu": Preset(
        "first tokens on a machine without a GPU: nothing to compile, kernels that run anywhere",
        None,
        Levers(cuda_graphs=False, prefix_caching=True, attention="torch"),
    ),
    "low-latency-a100": Preset(
        "short gaps between tokens in 16 bits; an A100 has no FP8 units",
        Generation.AMPERE,
        Levers.model_validate(_LATENCY),
    ),
    "low-latency-h100": Preset(
        "short gaps between tokens: FP8 weights and cache, small steps",
        Generation.HOPPER,
        Levers.model_validate({**_LATENCY, "quantisation": "fp8", "kv_cache": "fp8"}),
    ),
    "low-latency-b200": Preset(
        "short gaps between tokens: a checkpoint with FP4 weights, an FP8 cache, small steps",
        Generation.BLACKWELL,
        Levers.model_validate({**_LATENCY, "quantisation": "fp4-stored", "kv_cache": "fp8"}),
    ),
    "burst-l4": Preset(
        "up soon on a small card: FP8 makes room, nothing is captured or compiled at the start",
        Generation.ADA,
        Levers.model_validate({**_LATENCY, "quantisation": "fp8", "kv_cache": "fp8", "cuda_graphs": False}),
    ),
    "throughput-a100": Preset(
        "tokens per dollar in 16 bits: large steps",
        Generation.AMPERE,
        Levers.model_validate({**_THROUGHPUT, "chunked_prefill": 8192}),
    ),
    "throughput-h100": Preset(
        "tokens per dollar: FP8 weights and cache, large steps",
        Generation.HOPPER,
        Levers.model_validate({**_THROUGHPUT, "quantisation": "fp8", "kv_cache": "fp8"}),
    ),
    "throughput-b200": Preset(
        "tokens per dollar: a checkpoint with FP4 weights, an FP8 cache, large steps",
        Generation.BLACKWELL,
        Levers.model_validate({**_THROUGHPUT, "quantisation": "fp4-stored", "kv_cache": "fp8"}),
    ),
}

"""Role: the levers that say how a step is computed. Owns: CUDA graphs, attention kernels, prefix caching.

Must not know: other levers.
"""

from __future__ import annotations

from typing import Final

from cluster.presets.lever import Args, Lever
from cluster.presets.shape import Levers
from cluster.presets.target import Engine, Generation, Target

_ATTENTION: Final = {
    ("vllm", "flash_attention"): "FLASH_ATTN",
    ("vllm", "flashinfer"): "FLASHINFER",
    ("vllm", "triton"): "TRITON_ATTN",
    ("sglang", "flash_attention"): "fa3",
    ("sglang", "flashinfer"): "flashinfer",
    ("sglang", "triton"): "triton",
    ("sglang", "torch"): "torch_native",
}


def _graphs_arguments(levers: Levers, engine: Engine) -> Args:
    if levers.cuda_graphs:
        return {}  # both engines capture graphs unless told not to
    return {"enforce-eager" if engine.kind == "vllm" else "disable-cuda-graph": True}


def _graphs_why(levers: Levers) -> str:
    if levers.cuda_graphs:
        return "a step's kernels start as one, which small batches feel most; paid at the start, with time and memory"
    return "up sooner and with less memory: nothing is captured or compiled; each step starts its kernels one by one"


def _graphs_obstacle(levers: Levers, target: Target) -> str | None:
    if levers.cuda_graphs and target.on_cpu:
        return "cuda_graphs: true needs a GPU; set cuda_graphs: false"
    return None


def _graphs_caution(levers: Levers, target: Target) -> str | None:
    if levers.cuda_graphs or target.on_cpu:
        return None
    return "cuda_graphs: false makes every token slower on a GPU; worth it where starts matter more than tokens"


def _prefix_arguments(levers: Levers, engine: Engine) -> Args:
    if engine.kind == "vllm":
        return {"enable-prefix-caching": levers.prefix_caching}
    return {} if levers.prefix_caching else {"disable-radix-cache": True}


def _prefix_why(levers: Levers) -> str:
    if levers.prefix_caching:
        return "what a prompt shares with an earlier one is not read again: conversations and system prompts gain most"
    return "nothing is kept between requests: only where prompts never share a beginning"


def _attention_arguments(levers: Levers, engine: Engine) -> Args:
    backend = _ATTENTION.get((engine.kind, str(levers.attention)))
    if backend is None:
        return {}  # auto; and vLLM has one implementation for CPUs, which it takes by itself
    more = {"sampling-backend": "pytorch"} if levers.attention == "torch" else {}
    return {"attention-backend": backend, **more}


def _attention_why(levers: Levers) -> str:
    if levers.attention == "auto":
        return "the engine chooses the kernels by hardware and model"
    if levers.attention == "torch":
        return "kernels that come with torch: they need nothing compiled, so they run on any CPU"
    return f"{levers.attention} kernels instead of the engine's choice: for hardware or features that need them"


def _attention_obstacle(levers: Levers, target: Target) -> str | None:
    wanted, kind = levers.attention, target.engine.kind
    if wanted == "auto":
        return None
    if wanted == "torch":
        if kind == "vllm" and not target.on_cpu:
            return "attention: torch is for CPUs; set attention: auto"
        return None
    if target.lacks(Generation.AMPERE):
        return f"attention: {wanted} needs Ampere or newer, not {target.place}; set attention: auto"
    if wanted == "flash_attention" and kind == "sglang" and target.generation == Generation.BLACKWELL:
        return (
            f"attention: flash_attention is fa3 in SGLang, which does not run on {target.place}; set attention: auto, "
            "or engine.args.attention-backend: fa4"
        )
    return None


CUDA_GRAPHS = Lever("cuda_graphs", _graphs_arguments, _graphs_why, _graphs_obstacle, _graphs_caution)
PREFIX_CACHING = Lever("prefix_caching", _prefix_arguments, _prefix_why)
ATTENTION = Lever("attention", _attention_arguments, _attention_why, _attention_obstacle)

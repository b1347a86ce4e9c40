"""Role: the levers that store numbers in fewer bits. Owns: weights, KV cache, and which generation can do it.

Must not know: other levers. FP8 units came with Ada and Hopper, FP4 units with Blackwell. Both engines can also run
such weights on older GPUs, unpacked to 16 bits; that saves memory and no time, and is left to `engine.args`.
"""

from __future__ import annotations

from typing import Final

from cluster.presets.lever import Args, Lever
from cluster.presets.shape import Levers
from cluster.presets.target import Engine, Generation, Target

_ON_LOAD: Final = {
    ("vllm", "fp8"): "fp8",
    ("sglang", "fp8"): "fp8",
    ("vllm", "fp4"): "nvfp4_per_token",
    ("sglang", "fp4"): "nvfp4_online",
}
_KV_DTYPE: Final = {"vllm": "fp8", "sglang": "fp8_e4m3"}
_FORMATS: Final = {"fp8": (Generation.ADA, "Ada, Hopper or newer"), "fp4": (Generation.BLACKWELL, "Blackwell")}
_QUALITY: Final = "may cost quality, small models most: compare with `tribes quality`"
_WORKSTATION: Final = ("RTX-PRO-6000",)
"""Blackwell without the kernels that pack weights to FP4 while loading."""


def _format(levers: Levers) -> str | None:
    text = (levers.quantisation or "none").partition("-")[0]
    return None if text == "none" else text


def _weights_arguments(levers: Levers, engine: Engine) -> Args:
    method = _ON_LOAD.get((engine.kind, str(levers.quantisation)))
    return {"quantization": method} if method else {}  # stored formats are read from the model's own files


def _weights_why(levers: Levers) -> str:
    if _format(levers) is None:
        return "weights as the model has them: no loss"
    bits = "eight" if _format(levers) == "fp8" else "four"
    return f"{bits} bits a weight: a step reads less memory and leaves more to the KV cache; may cost quality"


def _weights_obstacle(levers: Levers, target: Target) -> str | None:
    wanted = _format(levers)
    if wanted is None:
        return None
    needed, names = _FORMATS[wanted]
    if not target.lacks(needed):
        if levers.quantisation == "fp4" and target.accelerator_type in _WORKSTATION:
            cure = "set quantisation: fp4-stored, with a checkpoint that is FP4"
            return f"quantisation: fp4 packs weights while loading on B200 and its kin only, not {target.place}; {cure}"
        return None
    other = "fp8" if wanted == "fp4" and not target.lacks(Generation.ADA) else "none"
    return f"quantisation: {levers.quantisation} needs {names}, not {target.place}; set quantisation: {other}"


def _weights_caution(levers: Levers, target: Target) -> str | None:
    if _format(levers) is None:
        return None
    said = f"quantisation: {levers.quantisation} {_QUALITY}"
    if levers.quantisation == "fp4":
        return f"{said}; on loading, both engines pack only the experts of mixture models: for others use fp4-stored"
    if str(levers.quantisation).endswith("-stored"):
        return f"{said}; the model's source must be a checkpoint that is quantised, or it runs as it is"
    return f"{said}; a checkpoint that is quantised already needs {levers.quantisation}-stored"


def _cache_arguments(levers: Levers, engine: Engine) -> Args:
    return {"kv-cache-dtype": _KV_DTYPE[engine.kind]} if levers.kv_cache == "fp8" else {}


def _cache_why(levers: Levers) -> str:
    if levers.kv_cache == "auto":
        return "the KV cache in the model's own format"
    return "twice the tokens in the KV cache, and half the reading at long contexts; a little less exact"


def _cache_obstacle(levers: Levers, target: Target) -> str | None:
    if levers.kv_cache != "fp8" or not target.lacks(Generation.ADA):
        return None
    return f"kv_cache: fp8 needs Ada, Hopper or newer, not {target.place}; set kv_cache: auto"


QUANTISATION = Lever("quantisation", _weights_arguments, _weights_why, _weights_obstacle, _weights_caution)
KV_CACHE = Lever("kv_cache", _cache_arguments, _cache_why, _cache_obstacle)

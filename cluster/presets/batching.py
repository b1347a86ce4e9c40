"""Role: the levers that say what goes into one step of the engine. Owns: chunked prefill, mixed batches.

Must not know: other levers, but for those that cannot be combined with mixing.
"""

from __future__ import annotations

from cluster.presets.lever import Args, Lever
from cluster.presets.shape import Levers, Ngram
from cluster.presets.target import Engine, Target


def _chunk_arguments(levers: Levers, engine: Engine) -> Args:
    tokens = levers.chunked_prefill
    if engine.kind == "sglang":
        return {"chunked-prefill-size": tokens or -1}
    if not tokens:
        return {"enable-chunked-prefill": False}
    return {"enable-chunked-prefill": True, "max-num-batched-tokens": tokens}


def _chunk_why(levers: Levers) -> str:
    if levers.chunked_prefill == 0:
        return "prompts are read whole: the shortest prefill, while running answers wait for it"
    return (
        f"at most {levers.chunked_prefill} tokens a step: smaller lets a long prompt disturb running answers less, "
        "larger reads prompts with less overhead"
    )


def _mixed_arguments(levers: Levers, engine: Engine) -> Args:
    return {"enable-mixed-chunk": True} if engine.kind == "sglang" and levers.mixed_batching else {}


def _mixed_why(levers: Levers) -> str:
    if levers.mixed_batching:
        return "answers go on while a prompt is read, each step a little longer"
    return "a prompt is read by itself: its first token comes sooner, running answers pause"


def _mixed_obstacle(levers: Levers, target: Target) -> str | None:
    if not levers.mixed_batching:
        if target.engine.kind == "vllm":
            return "vLLM always mixes prompts and answers in one step; remove mixed_batching: false"
        return None
    if levers.chunked_prefill == 0:
        return (
            "mixed_batching: true needs prompts in pieces; give chunked_prefill a number, or set mixed_batching: false"
        )
    if target.engine.kind == "sglang" and isinstance(levers.speculation, Ngram):
        return (
            "SGLang cannot mix prompts into steps with n-gram drafts; set mixed_batching: false, or speculation: none"
        )
    return None


CHUNKED_PREFILL = Lever("chunked_prefill", _chunk_arguments, _chunk_why)
MIXED_BATCHING = Lever("mixed_batching", _mixed_arguments, _mixed_why, _mixed_obstacle)

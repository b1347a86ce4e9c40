"""Role: the lever that drafts tokens and verifies several in one step. Owns: n-gram, EAGLE-3 and MTP on both engines.

Must not know: other levers. All drafts are chains, not trees: the one form that both engines and every attention kernel
take. What is accepted is what the model would have said itself, up to rounding.
"""

from __future__ import annotations

from typing import Final

from cluster.presets.lever import Args, Lever
from cluster.presets.shape import Eagle3, Levers, Mtp, Ngram, NoSpeculation
from cluster.presets.target import Engine, Target

CROWD: Final = 32
"""Requests at once from which verifying drafts is likely to take time from other requests."""
MATCH_TOKENS: Final = (3, 5)
"""vLLM: the fewest and most tokens that must occur again for a draft; fewer would draft much that is wrong."""


def _vllm(spec: Ngram | Eagle3 | Mtp) -> Args:
    config: Args = {"method": spec.kind, "num_speculative_tokens": spec.tokens}
    if isinstance(spec, Ngram):
        fewest, most = MATCH_TOKENS
        config |= {"prompt_lookup_min": fewest, "prompt_lookup_max": most}
    if isinstance(spec, Eagle3):
        config["model"] = spec.model
    return {"speculative-config": config}


def _sglang(spec: Ngram | Eagle3 | Mtp, engine: Engine) -> Args:
    # SGLang counts the token that is certain among the draft tokens, and runs 48 requests at once if none are named.
    common = {
        "speculative-num-draft-tokens": spec.tokens + 1,
        "max-running-requests": engine.max_running,
    }
    if isinstance(spec, Ngram):
        return {"speculative-algorithm": "NGRAM", "speculative-ngram-max-bfs-breadth": 1, **common}
    chain = {"speculative-num-steps": spec.tokens, "speculative-eagle-topk": 1}
    if isinstance(spec, Eagle3):
        draft = {"speculative-algorithm": "EAGLE3", "speculative-draft-model-path": spec.model}
        return {**draft, **chain, **common}
    return {"speculative-algorithm": "NEXTN", **chain, **common}


def _arguments(levers: Levers, engine: Engine) -> Args:
    spec = levers.speculation
    if spec is None or isinstance(spec, NoSpeculation):
        return {}
    return _vllm(spec) if engine.kind == "vllm" else _sglang(spec, engine)


def _why(levers: Levers) -> str:
    match levers.speculation:
        case Ngram():
            return "several tokens a step where the answer repeats the text before it; wasted work where it does not"
        case Eagle3():
            return "several tokens a step from a small draft model; paid with its memory, and with work on wrong drafts"
        case Mtp():
            return "several tokens a step from the model's own extra layers; paid with work on wrong drafts"
        case _:
            return "one token a step: no work on wrong drafts"


def _obstacle(levers: Levers, target: Target) -> str | None:
    spec = levers.speculation
    if isinstance(spec, Eagle3) and spec.model.startswith((".", "~")):
        return f"speculation.model {spec.model!r} is a relative folder; write an absolute one or a repository id"
    if not target.on_cpu or spec is None or isinstance(spec, NoSpeculation):
        return None
    if not isinstance(spec, Ngram):
        return (
            f"speculation: {spec.kind} is for GPUs, not {target.place}; use kind: ngram, which drafts without a model"
        )
    if target.engine.kind == "sglang":
        return (
            "speculation: ngram on a CPU needs compiled kernels that SGLang does not install; use kind: vllm, or set "
            "speculation: none"
        )
    return None


def _caution(levers: Levers, target: Target) -> str | None:
    spec = levers.speculation
    if spec is None or isinstance(spec, NoSpeculation):
        return None
    needs = {
        "ngram": "pays for answers that repeat their prompt (edits, quotes, summaries, code) and costs elsewhere",
        "eagle3": "needs a draft model that was trained for exactly this model",
        "mtp": "needs a model with MTP layers, such as DeepSeek, GLM or Qwen3-Next",
    }[spec.kind]
    said = f"speculation: {spec.kind} {needs}"
    if target.engine.max_running <= CROWD:
        return said
    return (
        f"{said}; with up to {target.engine.max_running} requests at once verifying drafts may cost more than it saves"
    )


SPECULATION = Lever("speculation", _arguments, _why, _obstacle, _caution)

"""Role: the lever that spreads one replica over several GPUs. Owns: tensor parallelism. Must not know: other levers."""

from __future__ import annotations

from cluster.presets.lever import Args, Lever
from cluster.presets.shape import Levers
from cluster.presets.target import Engine, Target


def _arguments(levers: Levers, engine: Engine) -> Args:
    return {"tensor-parallel-size": levers.tensor_parallel}


def _why(levers: Levers) -> str:
    if levers.tensor_parallel == 1:
        return "one GPU a replica: no traffic between GPUs"
    return (
        "each GPU reads a part of the weights, so a token takes less time; paid with hardware and traffic between GPUs"
    )


def _obstacle(levers: Levers, target: Target) -> str | None:
    wanted = levers.tensor_parallel or 1
    if wanted == 1 or wanted <= target.gpus:
        return None
    cure = f"set resources.gpus: {wanted}, or lower tensor_parallel"
    return f"tensor_parallel: {wanted} needs as many GPUs, and resources.gpus is {target.gpus:g}; {cure}"


def _caution(levers: Levers, target: Target) -> str | None:
    wanted = levers.tensor_parallel or 1
    if target.gpus > wanted:
        return f"resources.gpus is {target.gpus:g} and tensor_parallel {wanted}: unless engine.args use them, GPUs idle"
    if wanted > 1:
        return (
            f"tensor_parallel: {wanted} spends GPUs on latency: {wanted} replicas of one GPU each, where the model "
            "fits, give more tokens per dollar"
        )
    return None


TENSOR_PARALLEL = Lever("tensor_parallel", _arguments, _why, _obstacle, _caution)

"""Role: what to know about the chosen shape and what it was bought with. Owns: those sentences, with figures where the
plan has them. What levers cost in general is said by the presets. Must not know: how the choice was made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from cluster.planning.candidates import preset_of, target_of
from cluster.planning.facts import ModelFacts
from cluster.planning.results import Candidate, MixedFleet
from cluster.presets import cautions
from cluster.presets.speculation import CROWD
from cluster.vocabulary import RequestClass

SMALL_MODEL: Final = 4e9
"""Parameters below which fewer bits are most likely to be noticed."""


def counsel(
    request_class: RequestClass,
    chosen: Candidate,
    found: Sequence[Candidate],
    facts: ModelFacts,
    mixed: MixedFleet | None,
) -> Iterator[str]:
    """The sentences, most important first."""
    shape, replica = chosen.shape, chosen.replica
    assert replica is not None  # it was chosen, so it fits
    if chosen.basis == "roofline":
        yield "all times are estimates from data sheets; `tribes calibrate` on one replica measures them"
    yield from _tensor_parallel(chosen, found)
    if shape.quantisation in ("fp8", "fp4-stored", "int4-stored") and facts.active_parameters < SMALL_MODEL:
        yield (
            f"{shape.quantisation} on a model of {facts.parameters / 1e9:.1f} billion parameters: run `tribes quality` "
            "against the 16-bit model before you trust it"
        )
    yield _speculation(chosen)
    if request_class == RequestClass.SEMI_ONLINE and chosen.floor < chosen.replicas:
        yield f"{chosen.floor} of {chosen.replicas} replicas are always on; the rest start when a burst comes"
    if mixed is not None:
        yield (
            "the mixed fleet counts on each request size going to its accelerator; the queue sends by load and cache, "
            "so it is sure only where rows are pulled (batch jobs)"
        )
    yield from cautions(preset_of(shape, request_class), {}, target_of(shape, replica.slots))


def _tensor_parallel(chosen: Candidate, found: Sequence[Candidate]) -> Iterator[str]:
    """What the GPUs that share a replica bought."""
    shape = chosen.shape
    if shape.gpus == 1:
        return
    smaller = [c for c in found if c.shape.accelerator == shape.accelerator and c.shape.gpus < shape.gpus]
    fitting = [c for c in smaller if c.replica is not None]
    if not fitting:
        yield f"{shape.title}: fewer GPUs a replica cannot hold the model and its cache"
        return
    one = min(fitting, key=lambda c: (c.shape.gpus, not c.feasible, c.usd_per_hour))
    why = one.verdict or "it costs the same"
    yield f"{shape.title} instead of {one.shape.title}: more hardware a replica for latency or cache ({why})"


def _speculation(chosen: Candidate) -> str:
    crowd = chosen.point.sequences if chosen.point else float(chosen.replica.slots if chosen.replica else 0)
    if crowd > CROWD:
        return (
            f"speculative decoding: leave it off; with {crowd:.0f} sequences at once, verifying drafts takes time from "
            "the others"
        )
    return (
        f"speculative decoding: may pay, as only {crowd:.0f} sequences run at once and a step mostly reads weights; "
        "measure it on your prompts"
    )

"""Role: the step model of a shape, from the best source there is. Owns: that order: measured here, measured kernels,
formulas. Must not know: rates, prices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cluster.hardware import ACCELERATORS
from cluster.planning import kernels
from cluster.planning.calibration import Calibration, matching
from cluster.planning.candidates import SLOTS, chunk_tokens
from cluster.planning.facts import ModelFacts
from cluster.planning.load import Bucket, Replica, mean
from cluster.planning.memory import room
from cluster.planning.results import Basis
from cluster.planning.roofline import roofline
from cluster.planning.shape import Shape
from cluster.vocabulary import RequestClass

_CACHE_OF_AN_UNKNOWN: Final = (
    "memory: the calibration does not tell the size of the KV cache; calibrate with --kv-tokens"
)


@dataclass(frozen=True)
class Performance:
    """What is known about the model's speed."""

    model: str
    facts: ModelFacts
    calibrations: Sequence[Calibration] = ()
    kernels: kernels.KernelTimes | None = None

    def replica(
        self, shape: Shape, request_class: RequestClass, buckets: Sequence[Bucket]
    ) -> tuple[Replica | str, Basis]:
        """What one replica can do, or why there can be none."""
        measured = matching(self.calibrations, self.model, shape)
        chunk = chunk_tokens(request_class, shape.accelerator)
        context = max(1.0, mean(buckets, [b.context_tokens for b in buckets]))
        kv_tokens = measured.kv_tokens if measured else None
        if kv_tokens is None:
            if shape.accelerator not in ACCELERATORS:
                return _CACHE_OF_AN_UNKNOWN, "calibrated"
            longest = max(b.prompt_tokens + b.output_tokens for b in buckets)
            row = ACCELERATORS[shape.accelerator]
            for tokens in (longest, context):
                space = room(self.facts, shape, row, chunk, tokens)
                if isinstance(space, str):
                    return space, "calibrated" if measured else "roofline"
                kv_tokens = space.tokens
        assert kv_tokens is not None
        slots = int(max(1, min(SLOTS[request_class], kv_tokens // context)))
        if measured:
            return Replica(
                measured.step, kv_tokens, slots, chunk, shape.pipeline_parallel, measured.request_s
            ), "calibrated"
        return self._modelled(shape, buckets, context, kv_tokens, slots, chunk)

    def _modelled(
        self, shape: Shape, buckets: Sequence[Bucket], context: float, kv_tokens: int, slots: int, chunk: int
    ) -> tuple[Replica, Basis]:
        prompt = mean(buckets, [b.prompt_tokens for b in buckets])
        if self.kernels is not None:
            step = self.kernels.step_model(shape, sequences=slots, prompt_tokens=prompt, context_tokens=context)
            if step is not None:
                return Replica(step, kv_tokens, slots, chunk, shape.pipeline_parallel), "kernels"
        row = ACCELERATORS[shape.accelerator]
        step = roofline(self.facts, shape, row, sequences=slots, prompt_tokens=prompt, context_tokens=context)
        return Replica(step, kv_tokens, slots, chunk, shape.pipeline_parallel), "roofline"

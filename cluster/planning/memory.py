"""Role: does a model fit, and how much KV cache is left. Owns: the account of a GPU's memory, in words where it fails.

    cache = share x memory - weights / (TP x PP) - working space        tokens = cache / (bytes a token / (splits x PP))

`splits` = min(TP, KV heads): beyond that every GPU keeps the same heads. Working space is what both engines take beside
weights and cache: context, captured graphs and buffers (1.5 GiB), and the activations of one step (12 vectors of the
model's width for each token of a chunk, logits of 256 sequences in 32 bits), of which the first is a rule of thumb.
Must not know: time, prices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cluster.hardware import Accelerator
from cluster.planning.facts import ModelFacts
from cluster.planning.shape import Shape

MEMORY_SHARE: Final = 0.90
"""Of a GPU that the engine may use; what is emitted as gpu-memory-utilization or mem-fraction-static."""
_FIXED_BYTES: Final = 1.5 * 2**30
_VECTORS_PER_TOKEN: Final = 12
_LOGIT_ROWS: Final = 256
_GB: Final = 1e9


@dataclass(frozen=True, slots=True)
class Room:
    """What is left for the KV cache of one replica."""

    bytes_per_gpu: float
    tokens: int
    """Of sequences as long as asked for."""


def weight_bytes(facts: ModelFacts, shape: Shape) -> float:
    """All GPUs of a replica together. Embeddings and the head stay in 16 bits."""
    layers = facts.layer_parameters * shape.bytes_per_weight
    return layers + 2.0 * (facts.head_parameters + facts.embedding_parameters)


def room(facts: ModelFacts, shape: Shape, row: Accelerator, chunk_tokens: int, context_tokens: float) -> Room | str:
    """Room for sequences of `context_tokens`, or why there is none."""
    usable = MEMORY_SHARE * row.memory_bytes
    weights = weight_bytes(facts, shape) / shape.gpus
    working = _FIXED_BYTES + chunk_tokens * facts.hidden * 2.0 * _VECTORS_PER_TOKEN / shape.tensor_parallel
    working += _LOGIT_ROWS * facts.vocabulary * 4.0 / shape.tensor_parallel
    left = usable - weights - working
    if left <= 0:
        return (
            f"memory: {weights / _GB:.1f} GB of weights and {working / _GB:.1f} GB of working space a GPU, and "
            f"{usable / _GB:.1f} GB may be used"
        )
    per_sequence = kv_bytes_per_gpu(facts, shape, context_tokens)
    if left < per_sequence:
        return (
            f"memory: {left / _GB:.2f} GB a GPU are left for the KV cache, and one request of "
            f"{context_tokens:.0f} tokens needs {per_sequence / _GB:.2f} GB"
        )
    return Room(left, int(left / per_sequence * context_tokens))


def kv_bytes_per_gpu(facts: ModelFacts, shape: Shape, context_tokens: float) -> float:
    """What one sequence of that length holds on each GPU."""
    splits = min(shape.tensor_parallel, facts.kv_heads) * shape.pipeline_parallel
    return facts.kv_numbers(context_tokens) * shape.bytes_per_kv_number / splits

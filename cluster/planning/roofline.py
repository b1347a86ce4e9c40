"""Role: the built-in performance model. Owns: from sizes and data sheet to the constants of a step model.

    t = A + B x (prompt tokens) + C x (sequences) + D x (tokens in the cache)

    T_w = weights read / (TP x PP x memory rate)       T_x = operations a token / (TP x PP x peak rate x 0.5)
    A = PP x (1.4 x T_w) + 32 us x layers + 126 us + PP hops + TP messages (latency)
    B = T_x + attention + TP messages (bytes)
    C = 4 us + what T_x exceeds the reading of weights by: max(0, n x T_x - 1.4 x T_w) / n + TP messages (bytes)
    D = 1.9 x KV bytes a token / memory rate of the GPUs that hold it

Prompts are bound by arithmetic (B), answers by reading: the weights once a step (A), the caches of all (D). 1.4, 1.9,
32 us, 4 us and 126 us are the coefficients that BLIS (github.com/inference-sim/inference-sim, "trained-physics") fitted
on real vLLM runs; prompts at half of the peak are what its H100 fit comes to (0.46), rounded. TP: two all-reduces a
layer, each sending 2 (TP - 1) / TP x width x 2 bytes a token; 10 us each over NVLink, 30 us over PCIe. PP: stages work
on different sequences at once, so every per-token time is divided by 0.85 PP (they wait for each other; an assumption)
while a step still reads all weights one stage after the other. Of a mixture of experts a step reads those that n
sequences hit: E (1 - (1 - k/E)^n).

An estimate before anything ran: expect tens of percent. `tribes calibrate` replaces it. Must not know: queues, prices.
"""

from __future__ import annotations

from typing import Final

from cluster.hardware import Accelerator
from cluster.planning.facts import ModelFacts
from cluster.planning.memory import kv_bytes_per_gpu
from cluster.planning.shape import Shape
from cluster.simulation.step_model import StepModel

PROMPT_EFFICIENCY: Final = 0.5
WEIGHT_FACTOR: Final = 1.4
CACHE_FACTOR: Final = 1.9
LAYER_S: Final = 32e-6
STEP_S: Final = 126e-6
SEQUENCE_S: Final = 4e-6
STAGE_EFFICIENCY: Final = 0.85
MESSAGE_S: Final = {"nvlink": 10e-6, "pcie": 30e-6}


def roofline(
    facts: ModelFacts, shape: Shape, row: Accelerator, *, sequences: int, prompt_tokens: float, context_tokens: float
) -> StepModel:
    """Of one replica with about `sequences` at once, prompts and contexts of about that length."""
    gpus, stages = shape.gpus, shape.pipeline_parallel
    kept = STAGE_EFFICIENCY if stages > 1 else 1.0
    token_s = _operations_s(shape, row, 2.0 * (facts.active_layer_parameters + facts.head_parameters))
    # On average a token of a prompt attends to half of it.
    attention = 4.0 * facts.layers * facts.attention_width * prompt_tokens / 2
    prompt_s = _operations_s(shape, row, 2.0 * facts.active_layer_parameters + attention)
    read_s = WEIGHT_FACTOR * _bytes_read(facts, shape, sequences) / (gpus * row.bytes_per_s)
    excess_s = max(0.0, sequences * token_s - read_s) / sequences
    message_s, message_token_s = _messages(facts, shape, row)
    cache_s = CACHE_FACTOR * kv_bytes_per_gpu(facts, shape, context_tokens) / context_tokens / row.bytes_per_s
    return StepModel(
        stages * read_s + facts.layers * LAYER_S + STEP_S + (stages - 1) * MESSAGE_S[row.link] + message_s,
        (prompt_s + message_token_s) / kept,
        SEQUENCE_S + (excess_s + message_token_s) / kept,
        cache_s / kept,
    )


def _operations_s(shape: Shape, row: Accelerator, operations: float) -> float:
    return operations / (shape.gpus * row.flops(shape.number_format) * PROMPT_EFFICIENCY)


def _bytes_read(facts: ModelFacts, shape: Shape, sequences: int) -> float:
    """Weights that one step reads. Of the embedding it reads a row a token, which is nothing."""
    layers = float(facts.layer_parameters)
    taken = facts.experts_per_token / facts.experts if facts.experts else 1.0
    if taken < 1:
        experts = (facts.layer_parameters - facts.active_layer_parameters) / (1 - taken)
        layers -= experts * (1 - taken) ** sequences
    return layers * shape.bytes_per_weight + 2.0 * facts.head_parameters


def _messages(facts: ModelFacts, shape: Shape, row: Accelerator) -> tuple[float, float]:
    """Seconds (a step, a token) that tensor parallelism spends on messages; stages send theirs at the same time."""
    parts = shape.tensor_parallel
    if parts == 1:
        return 0.0, 0.0
    reductions = 2 * facts.layers
    token_bytes = 2 * (parts - 1) / parts * facts.hidden * 2
    return reductions * MESSAGE_S[row.link], reductions * token_bytes / row.link_bytes_per_s / shape.pipeline_parallel

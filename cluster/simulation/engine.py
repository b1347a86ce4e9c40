"""What a simulated engine is: its step model and its limits.

Owns: those numbers, and some engines whose numbers are published or fitted. Must not know: how they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cluster.simulation.step_model import StepModel


@dataclass(frozen=True, slots=True)
class Engine:
    """One replica's engine, in vLLM's words."""

    step: StepModel
    kv_tokens: int = 400_000
    """Room of the KV cache."""
    block_tokens: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    prefix_caching: bool = True

    def __post_init__(self) -> None:
        for name in ("kv_tokens", "block_tokens", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of an engine must be 1 or more, got {getattr(self, name)}")

    @property
    def blocks(self) -> int:
        return self.kv_tokens // self.block_tokens


ENGINES: Final[dict[str, Engine]] = {
    # The VTC paper's profile of S-LoRA's engine, as a step model.
    "llama-2-7b-a10g": Engine(StepModel(16.3e-3, 0.215e-3, 0.245e-3, 2.02e-6), kv_tokens=10_000),
    # BLIS's published fit, in its first form.
    "llama-3.1-8b-h100-tp2": Engine(StepModel(6.91e-3, 17.67e-6, 2.84e-6, 0.0), max_num_batched_tokens=8192),
    # Fitted to LLMServingSim's recordings of vLLM 0.19.0, all requests of each: benchmarks/results/simulate.json.
    "llama-3.1-8b-rtx-4090": Engine(StepModel(16.64e-3, 71.7e-6, 0.0, 228.6e-9), kv_tokens=41_408),
    "qwen3-32b-rtx-pro-6000-tp2": Engine(StepModel(25.19e-3, 162.6e-6, 0.0, 248.7e-9), max_num_seqs=128),
}

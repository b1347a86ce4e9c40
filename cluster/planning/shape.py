"""Role: what one replica is made of. Owns: the type, and how a quantisation changes bytes and rates.

Must not know: whether it fits or how fast it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from cluster.hardware import NumberFormat
from cluster.presets.target import EngineKind

Quantisation = Literal["none", "fp8", "fp8-stored", "fp4-stored", "int4-stored"]
"""As the lever of the presets says it; `int4-stored` are AWQ and GPTQ files, which need no lever."""
QUANTISATIONS: Final[tuple[str, ...]] = get_args(Quantisation)

# NVFP4 and the usual AWQ or GPTQ files have a scale for every 16 to 128 weights: half a bit more, or less.
_BYTES: Final[dict[Quantisation, float]] = {
    "none": 2.0,
    "fp8": 1.0,
    "fp8-stored": 1.0,
    "fp4-stored": 0.5625,
    "int4-stored": 0.5625,
}
_RATES: Final[dict[Quantisation, NumberFormat]] = {
    "none": "16bit",
    "fp8": "fp8",
    "fp8-stored": "fp8",
    "fp4-stored": "fp4",
    "int4-stored": "16bit",  # unpacked before they are multiplied
}


@dataclass(frozen=True, slots=True)
class Shape:
    """One replica: accelerators, how they share the model, number formats, engine."""

    accelerator: str
    engine: EngineKind
    quantisation: Quantisation = "none"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    fp8_cache: bool = False

    @property
    def gpus(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def bytes_per_weight(self) -> float:
        return _BYTES[self.quantisation]

    @property
    def bytes_per_kv_number(self) -> int:
        return 1 if self.fp8_cache else 2

    @property
    def number_format(self) -> NumberFormat:
        return _RATES[self.quantisation]

    @property
    def title(self) -> str:
        """For tables: `2 x H100, TP2, fp8`."""
        parts = [f"{self.gpus} x {self.accelerator}"]
        parts += [f"TP{self.tensor_parallel}"] if self.tensor_parallel > 1 else []
        parts += [f"PP{self.pipeline_parallel}"] if self.pipeline_parallel > 1 else []
        parts += [self.quantisation] if self.quantisation != "none" else []
        return ", ".join(parts)

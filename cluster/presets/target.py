"""Role: where a lever would work. Owns: the generations of accelerators by the names that Ray gives them.

Must not know: levers. An accelerator that is not in the table is unknown, and nothing is refused on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal

EngineKind = Literal["vllm", "sglang"]


class Generation(IntEnum):
    """NVIDIA's, by compute capability times ten: a later one can do what an earlier one can."""

    VOLTA = 70
    TURING = 75
    AMPERE = 80
    ADA = 89
    HOPPER = 90
    BLACKWELL = 100

    @property
    def title(self) -> str:
        return self.name.capitalize()


_BY_TYPE: Final = {
    "V100": Generation.VOLTA,
    "T4": Generation.TURING,
    "A10G": Generation.AMPERE,
    "A100": Generation.AMPERE,
    "L4": Generation.ADA,
    "L40S": Generation.ADA,
    "H100": Generation.HOPPER,
    "H200": Generation.HOPPER,
    "H20": Generation.HOPPER,
    "B200": Generation.BLACKWELL,
    "B300": Generation.BLACKWELL,
    "GB200": Generation.BLACKWELL,
    "GB300": Generation.BLACKWELL,
    "RTX-PRO-6000": Generation.BLACKWELL,
}


def generation_of(accelerator_type: str | None) -> Generation | None:
    """None for one that is not in the table. Ray also knows sizes: `A100-80G` is an A100."""
    name = (accelerator_type or "").upper()
    return _BY_TYPE.get(name) or _BY_TYPE.get(name.partition("-")[0])


@dataclass(frozen=True, slots=True)
class Engine:
    """What the arguments of a lever may depend on."""

    kind: EngineKind
    max_running: int
    """Requests that Tribes gives one replica at once."""


@dataclass(frozen=True, slots=True)
class Target:
    """What decides whether a lever can be used."""

    engine: Engine
    gpus: float = 0
    """GPUs that one replica reserves."""
    accelerator_type: str | None = None

    @property
    def on_cpu(self) -> bool:
        return self.gpus == 0 and self.accelerator_type is None

    @property
    def generation(self) -> Generation | None:
        return generation_of(self.accelerator_type)

    @property
    def place(self) -> str:
        """For messages."""
        return "a CPU" if self.on_cpu else self.accelerator_type or "a GPU of unknown type"

    def lacks(self, needed: Generation) -> bool:
        """Whether it is certain that the accelerator is older than `needed`, or none at all."""
        return self.on_cpu or (self.generation is not None and self.generation < needed)

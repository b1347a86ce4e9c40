"""Role: one row per accelerator, under the name that Ray gives it. Owns: the figures and where each row comes from.

Must not know: how fast software gets (`cluster.planning.roofline`), nor prices, which belong to configurations.

Rates are those of dense matrices; makers advertise twice as much for sparse ones. Memory is counted in units of 10^9
bytes, as makers do: what a driver shows is the same or some percent more. `link_gb_s` is one direction of what connects
the GPUs of a node (NVLink, else PCIe), half of what makers state for both directions together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, Literal

NumberFormat = Literal["16bit", "fp8", "fp4"]
LinkKind = Literal["nvlink", "pcie"]


class UnknownAcceleratorError(ValueError):
    """The table has no such row."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What one of them has."""

    name: str
    memory_gb: float
    memory_gb_s: float
    """Reading it."""
    tflops_16bit: float
    tflops_fp8: float | None
    tflops_fp4: float | None
    link: LinkKind
    link_gb_s: float
    per_node: int
    """How many a usual node has; one replica stays within a node."""
    source: str

    @property
    def memory_bytes(self) -> float:
        return self.memory_gb * 1e9

    @property
    def bytes_per_s(self) -> float:
        return self.memory_gb_s * 1e9

    @property
    def link_bytes_per_s(self) -> float:
        return self.link_gb_s * 1e9

    def flops(self, number: NumberFormat) -> float:
        """Multiplications and additions a second in that format; one that it lacks runs unpacked to 16 bits."""
        found = {"16bit": self.tflops_16bit, "fp8": self.tflops_fp8, "fp4": self.tflops_fp4}[number]
        return (found or self.tflops_16bit) * 1e12


_NVIDIA: Final = "https://www.nvidia.com/en-us/data-center"
_A100: Final = f"{_NVIDIA}/a100/ (SXM)"
_H: Final = "(SXM; sparse rates halved)"

_ROWS: Final = (
    Accelerator("T4", 16, 300, 65, None, None, "pcie", 16, 4, f"{_NVIDIA}/tesla-t4/"),
    Accelerator(
        "A10G",
        24,
        600,
        70,
        None,
        None,
        "pcie",
        32,
        8,
        "https://aws.amazon.com/ec2/instance-types/g5/ (A10G data sheet)",
    ),
    Accelerator("L4", 24, 300, 121, 242.5, None, "pcie", 32, 8, f"{_NVIDIA}/l4/ (sparse rates halved)"),
    Accelerator("L40S", 48, 864, 362, 733, None, "pcie", 32, 8, f"{_NVIDIA}/l40s/"),
    Accelerator("A100-40G", 40, 1555, 312, None, None, "nvlink", 300, 8, _A100),
    Accelerator("A100-80G", 80, 2039, 312, None, None, "nvlink", 300, 8, _A100),
    Accelerator("H100", 80, 3350, 989.5, 1979, None, "nvlink", 450, 8, f"{_NVIDIA}/h100/ {_H}"),
    Accelerator("H200", 141, 4800, 989.5, 1979, None, "nvlink", 450, 8, f"{_NVIDIA}/h200/ {_H}"),
    Accelerator("B200", 180, 8000, 2250, 4500, 9000, "nvlink", 900, 8, f"{_NVIDIA}/dgx-b200/ (an eighth of it)"),
    Accelerator("B300", 270, 8000, 2250, 4500, 13500, "nvlink", 900, 8, f"{_NVIDIA}/hgx/ (an eighth of HGX B300)"),
    Accelerator("GB200", 186, 8000, 2500, 5000, 10000, "nvlink", 900, 4, f"{_NVIDIA}/gb200-nvl72/ (a 72nd of it)"),
    Accelerator("GB300", 279, 8000, 2500, 5000, 15000, "nvlink", 900, 4, f"{_NVIDIA}/gb300-nvl72/ (a 72nd of it)"),
    Accelerator(
        "RTX-PRO-6000",
        96,
        1597,
        500,
        1000,
        2000,
        "pcie",
        64,
        8,
        f"{_NVIDIA}/rtx-pro-6000-blackwell-server-edition/ (4000 sparse FP4, halved for dense and each wider format)",
    ),
)
ACCELERATORS: Final[dict[str, Accelerator]] = {row.name: row for row in _ROWS}
_AMBIGUOUS: Final = {"A100": "A100-40G or A100-80G"}


def accelerator(name: str, also: Iterable[str] = ()) -> Accelerator:
    """The row of that name. `also`: other names that would have done, for the message."""
    if name in ACCELERATORS:
        return ACCELERATORS[name]
    if name in _AMBIGUOUS:
        raise UnknownAcceleratorError(f"{name} comes in two sizes; write {_AMBIGUOUS[name]}")
    known = [*ACCELERATORS, *also]
    close = get_close_matches(name.upper(), known, n=1)
    cure = f"did you mean {close[0]}?" if close else f"use one of {', '.join(known)}"
    raise UnknownAcceleratorError(f"unknown accelerator {name!r}; {cure}")

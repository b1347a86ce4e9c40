"""Role: which way to bring a replica up. Owns: the rungs, their order, and the choice under a memory budget. Pure.

    rung      what is kept while nobody asks          what a start still has to do
    resident  a whole replica                         nothing
    asleep    a process; weights in host memory       copy the weights back to the accelerator
    forked    a process that has imported the engine  read weights, make caches, compile what is not cached
    snapshot  files                                   restore the process and its accelerator memory
    cold      nothing                                 everything

The choice is the fastest rung that exists and whose memory fits; what was measured counts, and until then the usual
order of the rungs. Must not know: processes, engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

RungName = Literal["resident", "asleep", "forked", "snapshot", "cold"]
NAMES: Final[tuple[RungName, ...]] = get_args(RungName)


@dataclass(frozen=True, slots=True)
class Rung:
    """One way up, for one model on one machine."""

    name: RungName
    why_not: str | None = None
    """None: this machine and model have it."""
    seconds: float | None = None
    """Measured, from the decision to the first answer; None = not measured."""
    held_bytes: int = 0
    """Memory that is taken while no replica runs."""


def choose(rungs: Sequence[Rung], budget_bytes: int) -> Rung:
    """The rung to use when `budget_bytes` may be held for it. ValueError where none is left, not even cold."""
    usable = [rung for rung in rungs if rung.why_not is None and rung.held_bytes <= budget_bytes]
    if not usable:
        raise ValueError("no rung is left: give `cold`, which holds no memory, among the rungs")
    measured = [rung for rung in usable if rung.seconds is not None]
    if len(measured) == len(usable):
        return min(measured, key=lambda rung: (rung.seconds, NAMES.index(rung.name)))
    return min(usable, key=lambda rung: NAMES.index(rung.name))

"""Role: what a lever is. Owns: the type. Must not know: any particular lever.

Its functions get all levers of a deployment, since one may exclude another; they are called only where its own is set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.presets.shape import Levers
from cluster.presets.target import Engine, Target

Args = dict[str, Any]


def _nothing(levers: Levers, target: Target) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Lever:
    """One thing to turn."""

    key: str
    """Its field in Levers."""
    arguments: Callable[[Levers, Engine], Args]
    """As the engine spells them, without leading dashes; empty where the engine does it by itself."""
    why: Callable[[Levers], str]
    """What one buys with it and what it costs, in one sentence."""
    obstacle: Callable[[Levers, Target], str | None] = _nothing
    """Why it cannot be used there, with the cure."""
    caution: Callable[[Levers, Target], str | None] = _nothing
    """What to know before using it there."""

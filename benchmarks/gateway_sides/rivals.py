"""Tenants who always want more than there is, while somebody else is measured.

Owns: that load. Must not know: what is measured meanwhile.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gateway_sides.drive import command
from benchmarks.gateway_sides.engine import SLOW
from benchmarks.gateway_sides.load import Door
from benchmarks.gateway_sides.up import process

IN_FLIGHT = 32
LIFE_S = 60.0
"""It ends by itself if nobody ends it."""
SPREAD_S = 2.0
"""Slots then come free one after the other, and not all at once: requests of the rivals take half a second each."""
SETTLE_S = 3.0


@contextlib.contextmanager
def rivals(door: Door, folder: Path) -> Iterator[None]:
    """The tenants of `door` wait meanwhile."""
    load = command(door, f"{SLOW} Tell me more.", IN_FLIGHT, LIFE_S, SPREAD_S)
    with process(load, {}, folder / "rivals.log"):
        time.sleep(SETTLE_S)
        yield

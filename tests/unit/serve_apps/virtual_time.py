"""An event loop whose time passes only while everybody waits: seconds cost nothing, and runs repeat exactly.

Role: for tests of protocols that are all timers and messages. What runs in it must not wait for files, sockets or
threads. Must not know: what is tested.
"""

from __future__ import annotations

import asyncio
import selectors
from types import SimpleNamespace
from typing import Any

START_S = 1_000_000.0


class _Clock(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """A selector that lets virtual time pass instead of waiting."""

    now_s = START_S

    def select(self, timeout: float | None = None) -> Any:
        self.now_s += timeout or 0.0
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """`asyncio` on a clock of its own; `clock` stands for the module `time`."""

    def __init__(self) -> None:
        self._virtual = _Clock()
        super().__init__(self._virtual)
        self.clock = SimpleNamespace(time=self.time, monotonic=self.time)

    def time(self) -> float:
        return self._virtual.now_s


async def inline(function: Any, *args: Any) -> Any:
    """Stands for `asyncio.to_thread`."""
    return function(*args)

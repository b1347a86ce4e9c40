"""Refusing cheaply in a storm: what the dispatcher has just refused many times is refused here for a moment.

Time is cut into windows. When one tenant's requests of one class and model were refused `STORM` times within a window,
the rest of the window gets the last of these refusals without a word to the dispatcher. So under any overload the
dispatcher hears of at most `STORM / WINDOW_S` hopeless requests per second from a tenant and gateway, and nobody is
refused for longer than `WINDOW_S` on old news.

Owns: the counts of this gateway process. Must not know: limits, why something was refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cluster.scheduling import Refusal
from cluster.vocabulary import RequestClass

WINDOW_S = 0.05
STORM = 16
MAX_ENTRIES = 10_000

Kind = tuple[str, str, RequestClass]
"""Model, tenant, class."""


@dataclass(slots=True)
class _Window:
    ends_at_s: float
    refused: int
    last: Refusal


class RecentRefusals:
    """Counts refusals per kind of request."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: dict[Kind, _Window] = {}

    def note(self, kind: Kind, refusal: Refusal) -> None:
        """The dispatcher has refused such a request on arrival."""
        now_s = self._clock()
        window = self._windows.get(kind)
        if window is None or window.ends_at_s <= now_s:
            if len(self._windows) >= MAX_ENTRIES:
                self._windows.clear()  # forgotten counts cost a question each, and are made up for in a window
            self._windows[kind] = _Window(now_s + WINDOW_S, 1, refusal)
        else:
            window.refused += 1
            window.last = refusal

    def find(self, kind: Kind) -> Refusal | None:
        """The answer to one more such request, if it is known without asking."""
        window = self._windows.get(kind)
        if window is None or window.refused < STORM:
            return None
        if window.ends_at_s <= self._clock():
            del self._windows[kind]
            return None
        return window.last

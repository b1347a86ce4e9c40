"""A counter that is told of a second's events at once: what Ray asks of a process for one record costs as much as
relaying several tokens, and sums lose nothing.

Owns: what was counted and not told yet. Must not know: what is counted.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

from ray.util.metrics import Counter

TELL_S = 1.0


class Tally:
    """Used inside one event loop. What is not told yet when the process ends is lost, as are Ray's own last records."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self._counter = Counter(name, description, tag_keys)
        self._tag_keys = tag_keys
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._telling = False

    def add(self, count: float, *tags: str) -> None:
        """`tags`: a value for each key, in their order."""
        self._sums[tags] += count
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_later(TELL_S, self.tell)

    def tell(self) -> None:
        """Tell Ray now."""
        self._telling = False
        sums, self._sums = self._sums, defaultdict(float)
        for tags, count in sums.items():
            self._counter.inc(count, dict(zip(self._tag_keys, tags, strict=True)))

"""An engine's KV cache in blocks: what runs is pinned, the rest kept until room is needed, least recently used first.

Owns: which blocks are there. Must not know: time, requests' order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class PrefixCache:
    """Blocks by their chained hash; a request's blocks that are not computed yet have none."""

    def __init__(self, blocks: int) -> None:
        self._room = blocks
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._pinned: dict[int, int] = {}
        self._unnamed = 0

    def fits(self, blocks: int) -> bool:
        """Whether a request of so many blocks could run now, whatever of it is cached."""
        return len(self._pinned) + self._unnamed + blocks <= self._room

    def matched(self, blocks: Sequence[int]) -> int:
        """Leading blocks that are there."""
        found = 0
        for block in blocks:
            if block not in self._idle and block not in self._pinned:
                break
            found += 1
        return found

    def begin(self, blocks: Sequence[int], all_blocks: int) -> int:
        """A request with these prompt blocks begins, and will hold `all_blocks`; returns how many leading ones are
        there, which are pinned."""
        matched = self.matched(blocks)
        for block in blocks[:matched]:
            self._pin(block)
        self._unnamed += all_blocks - matched
        self._evict()
        return matched

    def computed(self, blocks: Iterable[int]) -> None:
        """Blocks of a running request are whole now, and pinned until it ends."""
        for block in blocks:
            self._unnamed -= 1
            self._pin(block)

    def end(self, blocks: Sequence[int], unnamed: int) -> None:
        """A request ends that had these blocks and `unnamed` others. Of a chain its end is evicted first."""
        self._unnamed -= unnamed
        for block in reversed(blocks):
            uses = self._pinned[block] - 1
            if uses:
                self._pinned[block] = uses
            else:
                del self._pinned[block]
                self._idle[block] = None
        self._evict()

    def keep(self, blocks: Sequence[int]) -> None:
        """As if a request with these blocks had begun and ended: for a cache without an engine."""
        for block in reversed(blocks):
            self._idle[block] = None
            self._idle.move_to_end(block)
        self._evict()

    def _pin(self, block: int) -> None:
        self._idle.pop(block, None)
        self._pinned[block] = self._pinned.get(block, 0) + 1

    def _evict(self) -> None:
        room = max(0, self._room - len(self._pinned) - self._unnamed)
        while len(self._idle) > room:
            self._idle.popitem(last=False)

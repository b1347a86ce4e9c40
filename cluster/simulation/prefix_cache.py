"""An engine's prefix cache in whole blocks: what runs is pinned; the rest stays until its room is needed, the least
recently used first, and of one request the end before the beginning.

Blocks that nobody else can hit (a prompt without hashes, an answer) are kept per request as a number, so that a request
that was preempted may find them again, and so that they age as the others do.

Owns: which blocks are there. Must not know: time, steps, the size of the memory: callers say how much room there is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixCache:
    """Idle blocks by hash, with count 1, or by ("own", request number), with how many."""

    __slots__ = ("_idle", "_pins", "idle_blocks")

    def __init__(self) -> None:
        self._idle: OrderedDict[int | tuple[str, int], int] = OrderedDict()
        self._pins: dict[int, int] = {}
        self.idle_blocks = 0

    @property
    def pinned_blocks(self) -> int:
        return len(self._pins)

    def shrink(self, room: int) -> None:
        """Evict until no more than `room` blocks are idle."""
        idle = self._idle
        while self.idle_blocks > room:
            key, count = next(iter(idle.items()))
            evicted = min(count, self.idle_blocks - room)
            self.idle_blocks -= evicted
            if evicted == count:
                del idle[key]
            else:
                idle[key] = count - evicted

    def matched(self, blocks: Sequence[int]) -> int:
        """Leading blocks that are there."""
        found = 0
        for block in blocks:
            if block not in self._pins and block not in self._idle:
                break
            found += 1
        return found

    def running(self, blocks: Sequence[int]) -> int:
        """Of these, how many something that runs holds already: they take no room again."""
        pins = self._pins
        return sum(1 for block in blocks if block in pins)

    def own(self, number: int) -> int:
        """Blocks of its own that a preempted request left and that are still there."""
        return self._idle.get(("own", number), 0)

    def pin(self, blocks: Sequence[int], number: int) -> None:
        """A request begins that will hold these."""
        pins, idle = self._pins, self._idle
        for block in blocks:
            count = pins.get(block)
            if count is not None:
                pins[block] = count + 1
                continue
            pins[block] = 1
            if idle.pop(block, None):
                self.idle_blocks -= 1
        self.idle_blocks -= idle.pop(("own", number), 0)

    def unpin(self, blocks: Sequence[int], number: int, own: int, known: int) -> None:
        """It ends, or is preempted: it leaves the `known` first of its blocks, and `own` whole ones without hashes."""
        pins, idle = self._pins, self._idle
        if own > 0:
            idle[("own", number)] = own
            self.idle_blocks += own
        for place in range(len(blocks) - 1, -1, -1):
            block = blocks[place]
            count = pins[block] - 1
            if count:
                pins[block] = count
                continue
            del pins[block]
            if place < known:
                idle[block] = 1
                self.idle_blocks += 1

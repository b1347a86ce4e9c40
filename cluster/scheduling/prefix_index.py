"""What each replica has probably cached: an approximate prefix tree, local to whoever chooses replicas.

A prompt is a chain of block hashes, each of which stands for all blocks before it, so a set of hashes is a tree without
pointers: two prompts share exactly the leading blocks on which they agree. Replicas are never asked. That the index is
wrong at times (a replica has evicted what is noted here, or has more) costs a cache miss, never a wrong answer.

Owns: which blocks each replica was given (bounded, least recently used goes first). Must not know: prompts, tickets'
order, loads.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import islice

Prefix = tuple[int, ...]
BLOCKS_USED = 64
"""Leading blocks of a prompt that are looked at."""
BLOCK_TOKENS = 64
"""About as many tokens as the 256 bytes that a gateway hashes into a block."""
BLOCKS_KEPT = 32_768
"""Per replica."""
RECENT = 8
HOLDERS_LOOKED_AT = 4


class PrefixIndex:
    """The blocks of the prompts that each replica was given last."""

    def __init__(self, blocks_kept: int = BLOCKS_KEPT) -> None:
        self._blocks_kept = blocks_kept
        self._seen: dict[str, OrderedDict[int, None]] = {}
        self._holders: dict[int, dict[str, None]] = {}
        self._recent: dict[str, deque[Prefix]] = {}

    def add(self, replica_id: str, prefix: Prefix) -> None:
        seen = self._seen.setdefault(replica_id, OrderedDict())
        # Deepest block first: of a chain the leading blocks are the most recently used, so they stay longest.
        for block in reversed(prefix[:BLOCKS_USED]):
            if block in seen:
                seen.move_to_end(block)
            else:
                seen[block] = None
                self._holders.setdefault(block, {})[replica_id] = None
        while len(seen) > self._blocks_kept:
            self._drop(replica_id, seen.popitem(last=False)[0])
        recent = self._recent.setdefault(replica_id, deque(maxlen=RECENT))
        if prefix and prefix not in recent:
            recent.append(prefix)

    def matched(self, replica_id: str, prefix: Prefix) -> int:
        """Leading blocks of `prefix` that the replica has seen. A chain is dropped from its end, so what it has seen of
        one is a beginning of it, and halving finds how much: O(log blocks)."""
        seen = self._seen.get(replica_id)
        if not seen:
            return 0
        low, high = 0, min(len(prefix), BLOCKS_USED)
        while low < high:
            middle = (low + high + 1) // 2
            if prefix[middle - 1] in seen:
                low = middle
            else:
                high = middle - 1
        return low

    def holders(self, prefix: Prefix) -> list[str]:
        """Replicas that have most of `prefix`, of those with equally much at most `HOLDERS_LOOKED_AT`; empty when none
        has any. Halves like `matched`."""
        holders, found = self._holders, None
        low, high = 0, min(len(prefix), BLOCKS_USED)
        while low < high:
            middle = (low + high + 1) // 2
            having = holders.get(prefix[middle - 1])
            if having:
                low, found = middle, having
            else:
                high = middle - 1
        return list(islice(found, HOLDERS_LOOKED_AT)) if found else []

    def recent(self, replica_id: str) -> Iterator[Prefix]:
        return reversed(self._recent.get(replica_id, ()))

    def forget_replica(self, replica_id: str) -> None:
        for block in self._seen.pop(replica_id, ()):
            self._drop(replica_id, block)
        self._recent.pop(replica_id, None)

    def _drop(self, replica_id: str, block: int) -> None:
        holders = self._holders[block]
        del holders[replica_id]
        if not holders:
            del self._holders[block]

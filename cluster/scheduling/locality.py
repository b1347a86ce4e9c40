"""Locality-aware fairness: DLPM, deficit longest prefix match (arXiv 2501.14312), on the counters of `flow_tree`.

A tenant may go while its counter is below its level; among the tickets of those the one whose prompt is cached on a
free replica goes first. When no waiting tenant is below the level, the level becomes the smallest counter plus a
quantum Q: `level - counter` is the paper's deficit, and raising the level its refill. The same holds for keys and
programs below. A small Q is VTC, a large one is longest prefix first.

Bound: of siblings that wait all the time no counter is below `level - Q` or above `level + U`, so their service per
weight differs by at most `2 (U + Q)` over any stretch (U as in `flow_tree`); it holds for any rule that picks among the
eligible, so looking at a bounded number of tickets costs hits, not fairness.

Owns: which prefixes each replica has seen (bounded, least recently used goes first), waiting tickets by prefix.
Must not know: classes' order, limits, prompts: prefixes are chained hashes, so a hash stands for all blocks before it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import islice

from cluster.scheduling.class_order import INDEX, PRIORITY
from cluster.scheduling.flow_queue import FlowQueue
from cluster.scheduling.flows import Waiting
from cluster.scheduling.placement import SessionPlacement
from cluster.scheduling.replica_pools import ReplicaPools, Seat

Prefix = tuple[int, ...]
BLOCKS_USED = 64
"""Leading blocks of a prompt that are looked at."""
BLOCKS_KEPT = 8192
"""Per replica."""
RECENT = 8
MOST_PASSES = 16
"""A ticket that was due this often and passed over goes next: hot prefixes of its own flow must not starve it."""
SEATS_LOOKED_AT = 4
TICKETS_LOOKED_AT = 16


class PrefixIndex:
    """What each replica has probably cached: the blocks of the prompts that it was given last."""

    def __init__(self, blocks_kept: int = BLOCKS_KEPT) -> None:
        self._blocks_kept = blocks_kept
        self._seen: dict[str, OrderedDict[int, None]] = {}
        self._holders: dict[int, dict[str, None]] = {}
        self._recent: dict[str, deque[Prefix]] = {}

    def add(self, replica_id: str, prefix: Prefix) -> None:
        seen = self._seen.setdefault(replica_id, OrderedDict())
        # Deepest block first: of a chain the leading blocks are the most recently used, so they stay longest.
        for block in reversed(prefix[:BLOCKS_USED]):
            seen[block] = None
            seen.move_to_end(block)
            self._holders.setdefault(block, {})[replica_id] = None
        while len(seen) > self._blocks_kept:
            self._drop(replica_id, seen.popitem(last=False)[0])
        recent = self._recent.setdefault(replica_id, deque(maxlen=RECENT))
        if prefix and prefix not in recent:
            recent.append(prefix)

    def matched(self, replica_id: str, prefix: Prefix) -> int:
        """Leading blocks of `prefix` that the replica has seen."""
        seen = self._seen.get(replica_id, ())
        blocks = 0
        for block in prefix[:BLOCKS_USED]:
            if block not in seen:
                break
            blocks += 1
        return blocks

    def holders(self, prefix: Prefix) -> Iterator[str]:
        """Replicas by how much of `prefix` they have, most first; at most `SEATS_LOOKED_AT` for each length."""
        for block in reversed(prefix[:BLOCKS_USED]):
            yield from islice(self._holders.get(block, ()), SEATS_LOOKED_AT)

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


class WaitingPrefixes:
    """Waiting tickets of one class by the blocks that their prompts begin with."""

    def __init__(self) -> None:
        self._by_block: dict[int, dict[int, Waiting]] = {}

    def add(self, waiting: Waiting) -> None:
        for block in waiting.ticket.prefix[:BLOCKS_USED]:
            self._by_block.setdefault(block, {})[waiting.number] = waiting

    def remove(self, waiting: Waiting) -> None:
        for block in waiting.ticket.prefix[:BLOCKS_USED]:
            group = self._by_block.get(block)
            if group is not None and group.pop(waiting.number, None) is not None and not group:
                del self._by_block[block]

    def sharing(self, prefix: Prefix, at_least: int) -> Iterator[tuple[int, Waiting]]:
        """Tickets that share more than `at_least` leading blocks with `prefix`, most first, earliest first."""
        for depth in range(len(prefix[:BLOCKS_USED]), at_least, -1):
            for waiting in self._by_block.get(prefix[depth - 1], {}).values():
                yield depth, waiting


class LocalityChooser:
    """Picks ticket and replica together."""

    def __init__(self, quantum: float, pools: ReplicaPools, placement: SessionPlacement) -> None:
        self._quantum = quantum
        self._pools = pools
        self._placement = placement
        self._index = PrefixIndex()
        self._waiting = [WaitingPrefixes() for _ in PRIORITY]

    def came(self, waiting: Waiting) -> None:
        self._waiting[INDEX[waiting.ticket.request_class]].add(waiting)

    def left(self, waiting: Waiting) -> None:
        self._waiting[INDEX[waiting.ticket.request_class]].remove(waiting)

    def placed(self, waiting: Waiting, replica_id: str) -> None:
        self._index.add(replica_id, waiting.ticket.prefix)

    def forget_replica(self, replica_id: str) -> None:
        self._index.forget_replica(replica_id)

    def choose(self, queue: FlowQueue, index: int) -> tuple[Waiting, Seat] | None:
        """The next ticket of the class and its replica; None when there is no free one for the ticket that is due."""
        due = queue.head()
        seat = self._placement.choose(due.ticket, index) if due is not None else None
        if due is None or seat is None:
            return None
        if due.ticket.avoid or due.passed_over >= MOST_PASSES:
            return due, seat
        best, best_seat, blocks = self._best_replica(due, seat)
        for candidate in self._free_like(seat, index):
            for prefix in self._index.recent(candidate.replica_id):
                sharing = self._waiting[index].sharing(prefix, blocks)
                for _, waiting in islice(sharing, TICKETS_LOOKED_AT):
                    matched = self._index.matched(candidate.replica_id, waiting.ticket.prefix)
                    if matched > blocks and not waiting.ticket.avoid and self._eligible(waiting):
                        best, best_seat, blocks = waiting, candidate, matched
                        break
        due.passed_over += best is not due
        return best, best_seat

    def _best_replica(self, due: Waiting, seat: Seat) -> tuple[Waiting, Seat, int]:
        """Of the free replicas of the same kind the one that has most of the prompt."""
        prefix = due.ticket.prefix
        for replica_id in self._index.holders(prefix):
            holder = self._pools.get(replica_id)
            if holder is not None and holder.pool is seat.pool and holder.replica.free:
                return due, holder, self._index.matched(replica_id, prefix)
        return due, seat, self._index.matched(seat.replica_id, prefix)

    def _free_like(self, seat: Seat, index: int) -> Iterator[Seat]:
        own, lent = self._pools.tiers(index)
        for pool in own if seat.pool in own else lent:
            yield from pool.free(SEATS_LOOKED_AT)

    def _eligible(self, waiting: Waiting) -> bool:
        if waiting.flow.tenant.held:
            return False
        node = waiting.flow
        while (parent := node.parent) is not None:
            if node.counter >= parent.refill(self._quantum):
                return False
            node = parent  # type: ignore[assignment]
        return True

"""Locality-aware fairness: DLPM, deficit longest prefix match (arXiv 2501.14312), on the counters of `flow_tree`.

A tenant may go while its counter is below its level; among the tickets of those the one whose prompt is cached on a
free replica goes first. When no waiting tenant is below the level, the level becomes the smallest counter plus a
quantum Q: `level - counter` is the paper's deficit, and raising the level its refill. The same holds for keys and
programs below. A small Q is VTC, a large one is longest prefix first.

Bound: of siblings that wait all the time no counter is below `level - Q` or above `level + U`, so their service per
weight differs by at most `2 (U + Q)` over any stretch (U as in `flow_tree`); it holds for any rule that picks among the
eligible, so looking at a bounded number of tickets costs hits, not fairness.

Owns: waiting tickets by prefix, and which of them goes next. Must not know: classes' order, limits, what replicas hold
(that is `prefix_index`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from cluster.scheduling.class_order import INDEX, PRIORITY
from cluster.scheduling.flow_queue import FlowQueue
from cluster.scheduling.flows import Waiting
from cluster.scheduling.placement import SessionPlacement
from cluster.scheduling.prefix_index import BLOCKS_USED, Prefix
from cluster.scheduling.replica_pools import ReplicaPools, Seat

MOST_PASSES = 16
"""A ticket that was due this often and passed over goes next: hot prefixes of its own flow must not starve it."""
SEATS_LOOKED_AT = 4
TICKETS_LOOKED_AT = 16


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
        self._prefixes = placement.prefixes
        self._waiting = [WaitingPrefixes() for _ in PRIORITY]

    def came(self, waiting: Waiting) -> None:
        self._waiting[INDEX[waiting.ticket.request_class]].add(waiting)

    def left(self, waiting: Waiting) -> None:
        self._waiting[INDEX[waiting.ticket.request_class]].remove(waiting)

    def choose(self, queue: FlowQueue, index: int, now_s: float) -> tuple[Waiting, Seat] | None:
        """The next ticket of the class and its replica; None when there is no free one for the ticket that is due."""
        due = queue.head()
        seat = self._placement.choose(due.ticket, index, now_s) if due is not None else None
        if due is None or seat is None:
            return None
        if due.passed_over >= MOST_PASSES:
            return due, seat
        best, best_seat, blocks = due, seat, self._prefixes.matched(seat.replica_id, due.ticket.prefix)
        for candidate in self._free_like(seat, index):
            for prefix in self._prefixes.recent(candidate.replica_id):
                sharing = self._waiting[index].sharing(prefix, blocks)
                for _, waiting in islice(sharing, TICKETS_LOOKED_AT):
                    matched = self._prefixes.matched(candidate.replica_id, waiting.ticket.prefix)
                    if matched > blocks and waiting is not due and self._may_go(waiting, candidate):
                        best, best_seat, blocks = waiting, candidate, matched
                        break
        due.passed_over += best is not due
        return best, best_seat

    def _free_like(self, seat: Seat, index: int) -> Iterator[Seat]:
        own, lent = self._pools.tiers(index)
        for pool in own if seat.pool in own else lent:
            yield from pool.free(SEATS_LOOKED_AT)

    def _may_go(self, waiting: Waiting, seat: Seat) -> bool:
        # A retry that has stepped aside in this round does not wait just now.
        if not waiting.waits or waiting.flow.tenant.held or seat.replica_id in waiting.ticket.avoid:
            return False
        node = waiting.flow
        while (parent := node.parent) is not None:
            if node.counter >= parent.refill(self._quantum):
                return False
            node = parent  # type: ignore[assignment]
        return True

"""Waiting tickets of one class by arrival and by deadline: what is oldest, what is most urgent, what waited too long.

Tickets mostly come in order of arrival, so they stand in a plain queue; those that come out of order (after a restart,
from a gateway whose clock is behind) stand in a heap beside it. Tickets that left are skipped.

Owns: those orders. Must not know: fairness, classes, the time.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.scheduling.flows import Waiting

_Heap = list[tuple[float, int, "Waiting"]]


class ArrivalOrder:
    """Every waiting ticket, oldest first, and those with a deadline. Without an expiry date of its own a ticket may
    wait `max_wait_s`."""

    __slots__ = ("_deadlines", "_expiries", "_in_order", "_others", "max_wait_s")

    def __init__(self, max_wait_s: float) -> None:
        self.max_wait_s = max_wait_s
        self._in_order: deque[Waiting] = deque()
        self._others: _Heap = []
        """Out of order, or with an expiry date of their own; all of them are in `_expiries` too."""
        self._expiries: _Heap = []
        self._deadlines: _Heap = []

    def __iter__(self) -> Iterator[Waiting]:
        yield from (w for w in self._in_order if w.waits)
        yield from (entry[2] for entry in self._others if entry[2].waits)

    def add(self, waiting: Waiting, live: int) -> None:
        """`live` tickets wait, this one among them."""
        ticket = waiting.ticket
        in_order = self._in_order
        if len(in_order) > 2 * live + 64:
            in_order = self._in_order = deque(w for w in in_order if w.waits)
        expires_at_s = ticket.expires_at_s
        if expires_at_s is None and (not in_order or in_order[-1].ticket.arrived_at_s <= ticket.arrived_at_s):
            in_order.append(waiting)
        else:
            own_s = expires_at_s if expires_at_s is not None else ticket.arrived_at_s + self.max_wait_s
            self._others = _push(self._others, ticket.arrived_at_s, waiting, live)
            self._expiries = _push(self._expiries, own_s, waiting, live)
        if ticket.deadline_at_s is not None:
            self._deadlines = _push(self._deadlines, ticket.deadline_at_s, waiting, live)

    def oldest_s(self) -> float:
        """When the oldest waiting ticket arrived; infinite while none waits."""
        head = self._head_in_order()
        oldest_s = head.ticket.arrived_at_s if head is not None else math.inf
        others = _head(self._others)
        return min(oldest_s, others[0]) if others is not None else oldest_s

    def earliest_deadline_s(self) -> float:
        """Infinite while no waiting ticket has a deadline."""
        head = _head(self._deadlines)
        return head[0] if head is not None else math.inf

    def overdue(self, now_s: float) -> Waiting | None:
        """A ticket that has waited for too long."""
        head = self._head_in_order()
        if head is not None and head.ticket.arrived_at_s + self.max_wait_s <= now_s:
            return head
        other = _head(self._expiries)
        return other[2] if other is not None and other[0] <= now_s else None

    def _head_in_order(self) -> Waiting | None:
        in_order = self._in_order
        while in_order and not in_order[0].waits:
            in_order.popleft()
        return in_order[0] if in_order else None


def _push(heap: _Heap, key: float, waiting: Waiting, live: int) -> _Heap:
    if len(heap) > 2 * live + 64:
        heap = [entry for entry in heap if entry[2].waits]
        heapq.heapify(heap)
    heapq.heappush(heap, (key, waiting.number, waiting))
    return heap


def _head(heap: _Heap) -> tuple[float, int, Waiting] | None:
    while heap and not heap[0][2].waits:
        heapq.heappop(heap)
    return heap[0] if heap else None

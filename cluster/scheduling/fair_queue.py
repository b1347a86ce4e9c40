"""Weighted token-fair queue over tenants: the Virtual Token Counter (VTC, OSDI'24, arXiv 2401.00588).

One counter per tenant counts the service it got, divided by its weight; the waiting tenant with the smallest counter
goes next, inside a tenant the earliest arrival. A tenant that comes back from idling has its counter lifted to the
smallest among the waiting ones (or to that of the last tenant to leave), so idle time earns no credit.
Bound (theorem 4.4): two tenants that both wait all the time differ by at most 2U in weighted service, with
`U = max(w_in * longest input, w_out * tokens that fit in the running batch)`.

A heap with lazy invalidation makes every operation O(log n) in waiting tenants.

Owns: counters and waiting order of one request class. Must not know: replicas, limits, time, other classes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import count

from cluster.scheduling.types import Ticket


class _TenantQueue:
    """Tickets of one tenant, earliest arrival first; removal marks, popping skips."""

    __slots__ = ("_heap", "_live", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Ticket]] = []
        self._live: dict[str, Ticket] = {}
        self._order = count()

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._live.values())

    def push(self, ticket: Ticket) -> None:
        self._live[ticket.ticket_id] = ticket
        heapq.heappush(self._heap, (ticket.arrived_at_s, next(self._order), ticket))

    def remove(self, ticket_id: str) -> Ticket | None:
        return self._live.pop(ticket_id, None)

    def peek(self) -> Ticket:
        while self._live.get(self._heap[0][2].ticket_id) is not self._heap[0][2]:
            heapq.heappop(self._heap)
        return self._heap[0][2]

    def pop(self) -> Ticket:
        ticket = self.peek()
        heapq.heappop(self._heap)
        del self._live[ticket.ticket_id]
        return ticket


class _LazyHeap:
    """Smallest key among members; entries whose key or membership has changed since are skipped when met."""

    __slots__ = ("_entries", "_key", "_member")

    def __init__(self, key: Callable[[str], float], member: Callable[[str], bool]) -> None:
        self._key = key
        self._member = member
        self._entries: list[tuple[float, str]] = []

    def offer(self, name: str) -> None:
        heapq.heappush(self._entries, (self._key(name), name))

    def head(self) -> str | None:
        while self._entries:
            key, name = self._entries[0]
            if self._member(name) and key == self._key(name):
                return name
            heapq.heappop(self._entries)
        return None

    def compact(self, names: Iterable[str], bound: int) -> None:
        """Rebuild from `names` when stale entries have grown past `bound`."""
        if len(self._entries) > bound:
            self._entries = [(self._key(n), n) for n in names if self._member(n)]
            heapq.heapify(self._entries)


class FairQueue:
    """Tickets of one request class, handed out by virtual token counters."""

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._waiting: dict[str, _TenantQueue] = {}
        self._held: set[str] = set()
        self._ready = _LazyHeap(self.counter, lambda t: t in self._waiting and t not in self._held)
        self._blocked = _LazyHeap(self.counter, lambda t: t in self._waiting and t in self._held)
        self._last_to_leave: str | None = None
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Ticket]:
        for queue in self._waiting.values():
            yield from queue

    def counter(self, tenant: str) -> float:
        """Weighted service charged so far, in service units."""
        return self._counters.get(tenant, 0.0)

    def counters(self) -> dict[str, float]:
        return dict(self._counters)

    def waiting_of(self, tenant: str) -> int:
        queue = self._waiting.get(tenant)
        return len(queue) if queue else 0

    def tickets_of(self, tenant: str) -> list[Ticket]:
        return list(self._waiting.get(tenant, ()))

    def tenants(self) -> list[str]:
        """Tenants with waiting tickets."""
        return list(self._waiting)

    def set_weight(self, tenant: str, weight: float) -> None:
        if weight <= 0:
            raise ValueError(f"weight of tenant {tenant!r} must be above 0, got {weight}")
        self._weights[tenant] = weight

    def push(self, ticket: Ticket) -> None:
        tenant = ticket.tenant
        queue = self._waiting.get(tenant)
        if queue is None:
            self._lift(tenant)
            queue = self._waiting[tenant] = _TenantQueue()
            self._offer(tenant)
        queue.push(ticket)
        self._size += 1

    def charge(self, tenant: str, service: float) -> None:
        """Add `service` (negative for a correction) to the tenant's counter, divided by its weight."""
        self._counters[tenant] = self.counter(tenant) + service / self._weights.get(tenant, 1.0)
        if tenant in self._waiting:
            self._offer(tenant)

    def peek(self) -> Ticket | None:
        """The ticket that is next, or None when nobody (who is not held) waits."""
        tenant = self._ready.head()
        return self._waiting[tenant].peek() if tenant is not None else None

    def pop(self) -> Ticket | None:
        ticket = self.peek()
        if ticket is None:
            return None
        self._waiting[ticket.tenant].pop()
        self._left(ticket.tenant)
        return ticket

    def remove(self, ticket: Ticket) -> bool:
        queue = self._waiting.get(ticket.tenant)
        if queue is None or queue.remove(ticket.ticket_id) is None:
            return False
        self._left(ticket.tenant)
        return True

    def hold(self, tenant: str) -> None:
        """Leave the tenant out of the choice (it runs as many requests as it may)."""
        self._held.add(tenant)
        if tenant in self._waiting:
            self._offer(tenant)

    def unhold(self, tenant: str) -> None:
        if tenant in self._held:
            self._held.discard(tenant)
            if tenant in self._waiting:
                self._offer(tenant)

    def forget_idle(self, tenants: set[str]) -> None:
        """Drop the counters of `tenants` that do not wait; a newcomer starts at the lift, so nothing is gained by
        it.
        """
        for tenant in tenants:
            if tenant not in self._waiting:
                self._counters.pop(tenant, None)
                self._weights.pop(tenant, None)
                self._held.discard(tenant)

    def _lift(self, tenant: str) -> None:
        # Held tenants count as waiting: a newcomer must not undercut them either.
        heads = [head for head in (self._ready.head(), self._blocked.head()) if head is not None]
        if heads:
            floor = min(self.counter(head) for head in heads)
        else:
            floor = self.counter(self._last_to_leave) if self._last_to_leave is not None else 0.0
        self._counters[tenant] = max(self.counter(tenant), floor)

    def _offer(self, tenant: str) -> None:
        heap = self._blocked if tenant in self._held else self._ready
        heap.offer(tenant)
        heap.compact(self._waiting, bound=4 * len(self._waiting) + 64)

    def _left(self, tenant: str) -> None:
        self._size -= 1
        if not len(self._waiting[tenant]):
            del self._waiting[tenant]
            self._last_to_leave = tenant

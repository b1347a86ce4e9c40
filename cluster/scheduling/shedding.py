"""Whom to shed when a queue is full: the tenant furthest above its share, and of its tickets the newest.

Pressure of a tenant = its virtual counter + what it has waiting / its weight: the counter it would reach if all of it
were served. The newcomer's own tenant is judged with the newcomer added; if that makes it the worst, the newcomer is
refused and nobody else is touched.

A tenant whose pressure may have grown is only noted (O(1)); the heap is brought up to date when somebody must be shed,
and every note is worked off once: O(log n) amortised, and next to nothing while there is room.

Owns: the order of tenants by pressure in one class. Must not know: limits, replicas, other classes.
"""

from __future__ import annotations

import heapq
from itertools import count

from cluster.scheduling.flow_queue import FlowQueue
from cluster.scheduling.flows import TenantNode, Waiting
from cluster.scheduling.types import Ticket


class ShedOrder:
    """Tenants of one class that wait, by pressure."""

    def __init__(self, queue: FlowQueue) -> None:
        self._queue = queue
        self._heap: list[tuple[float, int, TenantNode]] = []
        self._touched: list[TenantNode] = []
        self._numbers = count()

    def touch(self, tenant: TenantNode) -> None:
        """The tenant's pressure may have grown."""
        if not tenant.touched:
            tenant.touched = True
            self._touched.append(tenant)
            if len(self._touched) > 2 * len(self._queue.root.children) + 64:
                self._work_off()

    def victim(self, newcomer: Ticket, service: float) -> Waiting | None:
        """Whose place the newcomer takes; None when it is itself the worst."""
        worst = self.worst()
        if worst is None:
            return None
        if newcomer.tenant == worst.name or self._pressure_with(newcomer, service) >= worst.pressure:
            return None
        return _newest(worst)

    def worst(self) -> TenantNode | None:
        """The waiting tenant with the highest pressure."""
        self._work_off()
        heap = self._heap
        while heap:
            place, _, tenant = heap[0]
            if tenant.shed_place != place or not tenant.waiting:
                heapq.heappop(heap)
                continue
            pressure = tenant.pressure
            if pressure >= -place:
                return tenant
            tenant.shed_place = -pressure
            heapq.heapreplace(heap, (-pressure, next(self._numbers), tenant))
        return None

    def newest(self) -> Waiting | None:
        """The newest ticket of the worst tenant."""
        worst = self.worst()
        return _newest(worst) if worst is not None else None

    def _pressure_with(self, newcomer: Ticket, service: float) -> float:
        tenant = self._queue.tenant(newcomer.tenant)
        lift = self._queue.root.lift()
        if tenant is None:
            return lift + service / self._queue.weight_of(newcomer.tenant)
        counter = tenant.counter if tenant.waiting else max(tenant.counter, lift)
        return counter + (tenant.backlog + service) / tenant.weight

    def _work_off(self) -> None:
        for tenant in self._touched:
            tenant.touched = False
            if tenant.waiting:
                tenant.shed_place = -tenant.pressure
                heapq.heappush(self._heap, (tenant.shed_place, next(self._numbers), tenant))
        self._touched.clear()
        if len(self._heap) > 4 * len(self._queue.root.children) + 64:
            self._heap = [entry for entry in self._heap if entry[2].shed_place == entry[0] and entry[2].waiting]
            heapq.heapify(self._heap)


def _newest(tenant: TenantNode) -> Waiting:
    while not tenant.newest[-1].waits:
        tenant.newest.pop()
    return tenant.newest[-1]

"""Waiting tickets of one request class, handed out by hierarchical virtual token counters.

A flow is one (tenant, key, program). Inside a flow the earliest deadline goes first, then the earliest arrival.
Tickets that leave from the middle are marked and skipped later; what is marked is at most half of any list, so every
operation is O(log n), amortised. Flows that are idle and owe nothing are forgotten (see `flow_tree.forget`) once there
are more than `KEPT_IDLE` of them.

Owns: waiting order, ages and deadlines of one class. Must not know: replicas, limits, other classes, the time.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush
from itertools import count, islice
from typing import Any

from cluster.scheduling.arrivals import ArrivalOrder
from cluster.scheduling.flow_tree import FlowNode, Path, alive, come, forget, go, hold, unhold
from cluster.scheduling.flows import Flow, KeyNode, TenantNode, Waiting
from cluster.scheduling.types import Ticket

KEPT_IDLE = 1024
SNAPSHOT_FLOWS = 4096


class FlowQueue:
    """Tickets of one class. `weights` and `held` are shared by all classes: weights of tenants, tenants that may not
    run more."""

    def __init__(self, weights: Mapping[str, float], held: set[str], max_wait_s: float = math.inf) -> None:
        self._weights = weights
        self._held = held
        self.root = FlowNode("", None)
        self.backlog = 0.0
        self.ready = 0
        """Tickets of tenants that are not held."""
        self.arrivals = ArrivalOrder(max_wait_s)
        self.aside = 0
        """Ready tickets that the latest grant had to leave although there was a free slot."""
        self._set_aside: list[Waiting] = []
        self._restored = False
        self._flows: dict[tuple[str, str, str], Flow] = {}
        self._idle: deque[Flow] = deque()
        self._numbers = count()

    def __len__(self) -> int:
        return self.root.waiting

    def __iter__(self) -> Iterator[Ticket]:
        return (waiting.ticket for waiting in self.arrivals)

    # --- tickets --------------------------------------------------------------------------------------------------

    def push(self, ticket: Ticket, service: float, in_place: bool = False) -> Waiting:
        """`in_place`: the flow keeps its restored counter."""
        flow = self.flow_of(ticket)
        tenant = flow.tenant
        if self._restored and not in_place:
            flow.keeps_place = flow.key.keeps_place = tenant.keeps_place = False
        waiting = Waiting(ticket, flow, service, next(self._numbers))
        if flow.is_new:
            flow.is_new = False
            flow.key.introduce(flow, service)
        self._stand(waiting)
        self.arrivals.add(waiting, self.root.waiting)
        self._remember_newest(tenant, waiting)
        return waiting

    def head(self) -> Waiting | None:
        """The ticket that is next, or None when nobody (who is not held) waits."""
        tenant = self.root.head()
        if tenant is None:
            return None
        # A node that waits has a child that waits, and the children of keys are flows.
        flow: Any = tenant.head().head()  # type: ignore[union-attr]
        tickets = flow.tickets
        while not tickets[0][3].waits:
            heappop(tickets)
            flow.marked -= 1
        waiting: Waiting = tickets[0][3]
        return waiting

    def take(self, waiting: Waiting) -> None:
        """The ticket leaves: granted, cancelled, expired or shed."""
        self._leave(waiting)
        tenant = waiting.flow.tenant
        if not tenant.waiting and not self._set_aside:
            tenant.newest.clear()

    def set_aside(self, waiting: Waiting) -> None:
        """The head lets others go first until `put_back`, which follows in the same grant."""
        self._set_aside.append(waiting)
        self._leave(waiting)

    def put_back(self) -> list[Waiting]:
        """Who was set aside waits again, with its arrival and number; returns them. A flow in which nothing else waits
        is lifted as if it had just come: it is among the next, and time set aside earns no credit."""
        back, self._set_aside = self._set_aside, []
        for waiting in back:
            waiting.waits = True
            self._stand(waiting)
        self.aside = sum(not waiting.flow.tenant.held for waiting in back)
        return back

    def _stand(self, waiting: Waiting) -> None:
        flow, ticket = waiting.flow, waiting.ticket
        come(flow)
        deadline = ticket.deadline_at_s if ticket.deadline_at_s is not None else math.inf
        heappush(flow.tickets, (deadline, ticket.arrived_at_s, waiting.number, waiting))
        tenant = flow.tenant
        tenant.backlog += waiting.service
        self.backlog += waiting.service
        if not tenant.held:
            self.ready += 1

    def _leave(self, waiting: Waiting) -> None:
        waiting.waits = False
        flow = waiting.flow
        tenant = flow.tenant
        go(flow)
        if flow.tickets[0][3] is waiting:
            heappop(flow.tickets)
        else:
            flow.marked += 1
            if flow.marked > 32 and flow.marked > len(flow.tickets) // 2:
                flow.tickets = [entry for entry in flow.tickets if entry[3].waits]
                heapify(flow.tickets)
                flow.marked = 0
        # An empty queue has no backlog: resets what rounding has left.
        tenant.backlog = tenant.backlog - waiting.service if tenant.waiting else 0.0
        self.backlog = self.backlog - waiting.service if self.root.waiting else 0.0
        if not tenant.held:
            self.ready -= 1

    # --- flows ----------------------------------------------------------------------------------------------------

    def flow_of(self, ticket: Ticket) -> Flow:
        names = (ticket.tenant, ticket.key, ticket.program or "")
        flow = self._flows.get(names)
        return flow if flow is not None else self._new_flow(names)

    def left(self, flow: Flow) -> None:
        """Something of `flow` ended: it may be idle now."""
        if not flow.running and not flow.waiting and not flow.listed_idle:
            flow.listed_idle = True
            self._idle.append(flow)
            self.forget_idle(2)

    def forget_idle(self, tries: int) -> None:
        """Look at up to `tries` idle flows beyond the `KEPT_IDLE` latest, and drop those that owe nothing."""
        for _ in range(min(tries, len(self._idle) - KEPT_IDLE)):
            flow = self._idle.popleft()
            if flow.running or flow.waiting:
                flow.listed_idle = False
            elif forget(flow):
                del self._flows[flow.path]  # type: ignore[arg-type]  # a flow's path has three names
            else:
                self._idle.append(flow)

    def tenant(self, name: str) -> TenantNode | None:
        return self.root.children.get(name)  # type: ignore[return-value]  # the root's children are tenants

    def hold(self, tenant: str) -> None:
        node = self.tenant(tenant)
        if node is not None and not node.held:
            hold(node)
            self.ready -= node.waiting

    def unhold(self, tenant: str) -> None:
        node = self.tenant(tenant)
        if node is not None and node.held:
            unhold(node)
            self.ready += node.waiting

    def weight_of(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)

    # --- counters -------------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, float]:
        """Weighted service by tenant, in service units."""
        return {name: node.counter for name, node in self.root.children.items()}

    def waiting_by_tenant(self) -> dict[str, int]:
        return {name: node.waiting for name, node in self.root.children.items() if node.waiting}

    def snapshot(self, unsettled: Mapping[FlowNode, float]) -> dict[str, dict[Path, float]]:
        """Counters that must outlive this process, upper levels first, less what is `unsettled`; and the lifts of nodes
        that have children."""
        nodes = list(islice(alive(self.root), SNAPSHOT_FLOWS))
        parents = [self.root, *(node for node in nodes if node.children)]
        return {
            "counters": {node.path: node.counter - unsettled.get(node, 0.0) for node in nodes},
            "lifts": {node.path: node.lift() for node in parents},
        }

    def restore(self, snapshot: Mapping[str, Mapping[Path, Any]]) -> None:
        """Raise counters and lifts to those of a snapshot; several snapshots may be laid over one another."""
        # Counters first: what is made below a lift begins at it, and what still runs is not in the counters yet.
        for path, counter in snapshot["counters"].items():
            node = self._node(path)
            node.counter = max(node.counter, counter)
            node.keeps_place = not node.waiting
        for path, lift in snapshot["lifts"].items():
            node = self._node(path)
            node.floor = max(node.floor, lift)
        self._restored = True

    # --- inside ---------------------------------------------------------------------------------------------------

    def _new_flow(self, names: tuple[str, str, str]) -> Flow:
        tenant = self._node(names[:1])
        assert isinstance(tenant, TenantNode)
        key = self._node(names[:2])
        assert isinstance(key, KeyNode)
        flow = self._flows[names] = Flow(names[2], key, tenant)
        key.children[names[2]] = flow
        return flow

    def _node(self, path: Path) -> FlowNode:
        """The node at `path`, made with everything above it if it is not there."""
        if not path:
            return self.root
        parent = self._node(path[:-1])
        node = parent.children.get(path[-1])
        if node is not None:
            return node
        if len(path) == 1:
            node = TenantNode(path[0], parent, self.weight_of(path[0]))
            node.held = path[0] in self._held
        elif len(path) == 2:
            node = KeyNode(path[1], parent)
        else:
            node = self._new_flow(path)  # type: ignore[arg-type]  # three names
            node.is_new = False
            node.listed_idle = True
            self._idle.append(node)
        parent.children[path[-1]] = node
        return node

    def _remember_newest(self, tenant: TenantNode, waiting: Waiting) -> None:
        newest = tenant.newest
        if len(newest) > 2 * tenant.waiting + 16:
            newest = tenant.newest = [w for w in newest if w.waits]
        if newest and newest[-1].ticket.arrived_at_s > waiting.ticket.arrived_at_s:
            insort(newest, waiting, key=lambda w: w.ticket.arrived_at_s)
        else:
            newest.append(waiting)

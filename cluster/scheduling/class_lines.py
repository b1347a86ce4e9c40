"""The waiting lines of one queue, one per request class: bounds on how much waits, and which class goes next.

A class is raised when its oldest ticket is older than `max_age_s`; offline also when a deadline in it is nearer than
the margin or twice the class's usual run time.

Owns: the lines, what they share (weights, held tenants), the bound over all of them. Must not know: replicas, accounts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cluster.scheduling.class_order import INDEX, PRIORITY, ClassOrder
from cluster.scheduling.flow_queue import FlowQueue
from cluster.scheduling.flows import Waiting
from cluster.scheduling.shedding import ShedOrder
from cluster.scheduling.types import ClassPolicy, QueuePolicy, Ticket
from cluster.vocabulary import RequestClass

_UNSERVED = ClassPolicy(max_queued=0, max_wait_s=float("inf"))
RUN_TIME_MEMORY = 0.1
"""Part that the latest run has in a class's usual run time."""


class ClassLine:
    """One class: its policy, its tickets, and how long its requests usually run."""

    __slots__ = ("flows", "index", "policy", "request_class", "run_s", "shed")

    def __init__(self, request_class: RequestClass, policy: ClassPolicy, flows: FlowQueue) -> None:
        self.request_class = request_class
        self.index = INDEX[request_class]
        self.policy = policy
        self.flows = flows
        self.shed = ShedOrder(flows)
        self.run_s = 0.0

    def ran(self, seconds: float) -> None:
        self.run_s += RUN_TIME_MEMORY * (seconds - self.run_s)

    def is_urgent(self, now_s: float, margin_s: float) -> bool:
        arrivals = self.flows.arrivals
        max_age_s = self.policy.max_age_s
        if max_age_s is not None and now_s - arrivals.oldest_s() > max_age_s:
            return True
        # Deadlines of offline work are given with its batch; elsewhere any client may send one with each request, and
        # must not be able to move its whole class by that.
        if self.request_class is not RequestClass.OFFLINE:
            return False
        return arrivals.earliest_deadline_s() - now_s < max(margin_s, 2 * self.run_s)

    def put_back(self) -> None:
        """End of a grant: who was set aside waits as before."""
        for waiting in self.flows.put_back():
            # It may have been dropped from the order of shedding in between.
            self.shed.touch(waiting.flow.tenant)


@dataclass(frozen=True, slots=True)
class Full:
    """A bound is reached: `victim` would make room; None means that the newcomer is the worst."""

    which: str
    waiting: int
    victim: Waiting | None


class ClassLines:
    """Lines of all classes, most important first; those not in `classes` take no tickets."""

    def __init__(self, classes: Mapping[RequestClass, ClassPolicy], policy: QueuePolicy) -> None:
        self.weights: dict[str, float] = {}
        self.held: set[str] = set()
        self.order = ClassOrder({c: p.floor for c, p in classes.items()}, policy.raised_share)
        self._policy = policy
        policies = [classes.get(c, _UNSERVED) for c in PRIORITY]
        self.all = tuple(
            ClassLine(c, p, FlowQueue(self.weights, self.held, p.max_wait_s))
            for c, p in zip(PRIORITY, policies, strict=True)
        )
        self._bits = tuple((line.flows, 1 << line.index) for line in self.all)
        self._serving = {line.request_class: line for line in self.all if line.request_class in classes}

    def configure(self, classes: Mapping[RequestClass, ClassPolicy], policy: QueuePolicy) -> None:
        """New bounds, and classes that are served from now on. Those not named any more keep their bounds and are
        served on: what waits there must end like everything else."""
        self.order.configure({c: p.floor for c, p in classes.items()}, policy.raised_share)
        self._policy = policy
        for line in self.all:
            if line.request_class in classes:
                line.policy = classes[line.request_class]
                line.flows.arrivals.max_wait_s = line.policy.max_wait_s
        served = classes.keys() | self._serving.keys()
        self._serving = {line.request_class: line for line in self.all if line.request_class in served}

    def __iter__(self) -> Iterator[ClassLine]:
        """The served ones."""
        return iter(self._serving.values())

    def of(self, request_class: RequestClass) -> ClassLine:
        return self.all[INDEX[request_class]]

    def serving(self, request_class: RequestClass) -> ClassLine | None:
        return self._serving.get(request_class)

    def ready_mask(self) -> int:
        """Classes with a ticket that no limit holds, as bits."""
        mask = 0
        for flows, bit in self._bits:
            if flows.ready:
                mask |= bit
        return mask

    def ready_tickets(self, classes: int) -> int:
        """Tickets of `classes` (bits) for which any free slot would do."""
        ready = 0
        for flows, bit in self._bits:
            if bit & classes:
                ready += flows.ready - flows.aside
        return ready

    def raise_urgent(self, now_s: float) -> int:
        """Look which classes are raised; done once per round of grants. Returns those that are ready, as bits."""
        raised = 0
        ready = self.ready_mask()
        if ready & (ready - 1):
            for line in self._serving.values():
                if line.flows.ready and line.is_urgent(now_s, self._policy.deadline_margin_s):
                    raised |= 1 << line.index
        self.order.raise_classes(raised)
        return ready

    def full_for(self, line: ClassLine, ticket: Ticket, service: float) -> Full | None:
        """None when one more ticket may wait in `line`."""
        waiting = line.flows.root.waiting
        if waiting >= line.policy.max_queued:
            return Full(f"the {line.request_class} queue", waiting, line.shed.victim(ticket, service))
        bound = self._policy.max_queued
        if bound is None:
            return None
        total = 0
        for other in self.all:
            total += other.flows.root.waiting
        if total < bound:
            return None
        least = next((other for other in reversed(self.all) if other.flows.root.waiting), line)
        if least.index > line.index:
            return Full("the queue", total, least.shed.newest())
        victim = line.shed.victim(ticket, service) if least is line else None
        return Full("the queue", total, victim)

    def set_weight(self, tenant: str, weight: float) -> None:
        self.weights[tenant] = weight
        for line in self.all:
            node = line.flows.tenant(tenant)
            if node is not None:
                node.weight = weight
                line.shed.touch(node)

    def hold(self, tenant: str) -> None:
        """Leave a tenant out of the choice in every class (it runs as many requests as it may)."""
        if tenant not in self.held:
            self.held.add(tenant)
            for line in self.all:
                line.flows.hold(tenant)

    def unhold(self, tenant: str) -> None:
        if tenant in self.held:
            self.held.discard(tenant)
            for line in self.all:
                line.flows.unhold(tenant)
                node = line.flows.tenant(tenant)
                if node is not None:
                    line.shed.touch(node)

"""What the tree of one class is made of: tenants, API keys, and flows with their waiting tickets.

Owns: what each kind of node keeps beside its counter. Must not know: the order of events (that is `flow_queue`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cluster.scheduling.flow_tree import FlowNode
from cluster.scheduling.types import Ticket

if TYPE_CHECKING:
    from cluster.scheduling.limits import TenantAccount


class Waiting:
    """A ticket in the queue, with the service it was predicted to need when it came."""

    __slots__ = ("account", "flow", "number", "paid", "passed_over", "service", "ticket", "tokens", "waits")

    account: TenantAccount
    """Whose limits count it: given by the waiting room."""

    def __init__(self, ticket: Ticket, flow: Flow, service: float, number: int) -> None:
        self.ticket = ticket
        self.tokens = ticket.limit_tokens
        """What limits count."""
        self.flow = flow
        self.service = service
        self.number = number
        self.waits = True
        self.paid = False
        """The rate limits of this queue have counted it. Those of a former queue were lost with it."""
        self.passed_over = 0
        """Locality-aware mode: times that it was due and another one went first."""


class TenantNode(FlowNode):
    """A tenant: also what its waiting tickets need, and the tickets by arrival (for shedding the newest)."""

    __slots__ = ("backlog", "newest", "shed_place", "touched")

    def __init__(self, name: str, parent: FlowNode, weight: float) -> None:
        super().__init__(name, parent, weight)
        self.backlog = 0.0
        self.newest: list[Waiting] = []
        self.touched = False
        self.shed_place = math.nan

    @property
    def pressure(self) -> float:
        """How far above its share the tenant is, once what it has waiting were served."""
        return self.counter + self.backlog / self.weight


class KeyNode(FlowNode):
    """An API key. Its clients name its programs as they like, so new names must not be a way to the front: a new
    program starts where the one before it would end, but at most one largest request behind the lift. Programs that
    are new together so advance like one."""

    __slots__ = ("largest", "newest_ends")

    def __init__(self, name: str, parent: FlowNode) -> None:
        super().__init__(name, parent)
        self.newest_ends = 0.0
        self.largest = 0.0

    def introduce(self, child: FlowNode, service: float) -> None:
        self.largest = max(self.largest, service)
        lift = self.lift()
        child.counter = max(child.counter, lift, min(self.newest_ends, lift + self.largest))
        self.newest_ends = child.counter + service


class Flow(FlowNode):
    """A leaf of the tree with its tickets: (deadline, arrival, number, ticket)."""

    __slots__ = ("is_new", "key", "listed_idle", "marked", "tenant", "tickets")

    def __init__(self, name: str, key: KeyNode, tenant: TenantNode) -> None:
        super().__init__(name, key)
        self.key = key
        self.tenant = tenant
        self.is_new = True
        self.tickets: list[tuple[float, float, int, Waiting]] = []
        self.marked = 0
        self.listed_idle = False

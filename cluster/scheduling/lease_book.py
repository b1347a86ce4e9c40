"""Who runs where: the leases and prepaid slots of one queue, by id and by owner.

Owns: that book. Must not know: fairness, limits, how a replica is chosen.
"""

from __future__ import annotations

from cluster.scheduling.class_lines import ClassLine
from cluster.scheduling.flow_tree import FlowNode
from cluster.scheduling.flows import Flow
from cluster.scheduling.limits import TenantAccount
from cluster.scheduling.types import Lease, Prepaid
from cluster.vocabulary import RequestClass


class Running:
    """A lease with what was charged for it so far, and to whom."""

    __slots__ = (
        "account",
        "charged",
        "flow",
        "lease",
        "line",
        "mask",
        "paid",
        "predicted_output",
        "prefill_ahead",
        "reported_output",
        "way",
    )

    def __init__(
        self,
        lease: Lease,
        flow: Flow,
        account: TenantAccount,
        line: ClassLine,
        mask: int,
        predicted_output: int,
        way: int,
    ) -> None:
        self.lease = lease
        self.flow = flow
        self.account = account
        self.line = line
        self.mask = mask
        """Classes its replica serves."""
        self.way = way
        self.paid = False
        """The rate limits of this queue have counted it."""
        self.predicted_output = predicted_output
        self.reported_output = 0
        self.charged = 0.0
        self.prefill_ahead: float | None = None
        """Prompt tokens that the replica had to prefill before this request's own; None when nobody counts them."""


class LeaseBook:
    """Running leases and prepaid slots."""

    def __init__(self) -> None:
        self.running: dict[str, Running] = {}
        self.prepaid: dict[str, Prepaid] = {}

    def leases(self) -> list[Lease]:
        return [running.lease for running in self.running.values()]

    def by_class_and_tenant(self) -> dict[RequestClass, dict[str, int]]:
        """How many run."""
        counts: dict[RequestClass, dict[str, int]] = {}
        for running in self.running.values():
            ticket = running.lease.ticket
            of_class = counts.setdefault(ticket.request_class, {})
            of_class[ticket.tenant] = of_class.get(ticket.tenant, 0) + 1
        return counts

    def of_owner(self, owner: str) -> list[Lease]:
        return [r.lease for r in self.running.values() if r.lease.ticket.owner == owner]

    def unsettled(self) -> dict[FlowNode, float]:
        """By node of the tree: what of its counter is for requests that still run."""
        sums: dict[FlowNode, float] = {}
        for running in self.running.values():
            node: FlowNode = running.flow
            while node.parent is not None:
                sums[node] = sums.get(node, 0.0) + running.charged / node.weight
                node = node.parent
        return sums

    def on_replica(self, replica_id: str) -> list[Lease]:
        return [r.lease for r in self.running.values() if r.lease.replica_id == replica_id]

    def taken_on(self, replica_id: str) -> int:
        """Slots of a replica that leases and prepaid slots take."""
        return len(self.on_replica(replica_id)) + sum(1 for p in self.prepaid.values() if p.replica_id == replica_id)

    def prepaid_of(self, owner: str) -> list[Prepaid]:
        return [p for p in self.prepaid.values() if p.owner == owner]

    def drop_prepaid_on(self, replica_id: str) -> None:
        for lease_id in [i for i, p in self.prepaid.items() if p.replica_id == replica_id]:
            del self.prepaid[lease_id]

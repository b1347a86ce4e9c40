"""The shared multitenant request queue of one model: tickets in, leases out.

Composes the policies: admission limits, class order, token-fair tree per class, shedding, placement, leases. The live
dispatcher and the simulator drive the same object; every call takes the time, nothing sleeps, nothing does I/O, one
caller at a time. A decision costs O(log n), amortised, in tenants, waiting tickets and replicas.

Owns: the order of events between the policies.
Must not know: Ray, HTTP, engines, the configuration file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cluster.scheduling.admission import Admission
from cluster.scheduling.class_lines import ClassLines
from cluster.scheduling.class_order import class_mask
from cluster.scheduling.demand import Demand, DemandMeter
from cluster.scheduling.granting import Granting
from cluster.scheduling.lease_desk import LeaseDesk
from cluster.scheduling.locality import LocalityChooser
from cluster.scheduling.placement import SessionPlacement
from cluster.scheduling.recovery import Recovery
from cluster.scheduling.replica_pools import ReplicaPools
from cluster.scheduling.service import OutputPredictor, ServiceWeights
from cluster.scheduling.types import (
    ClassPolicy,
    Lease,
    Prepaid,
    QueuePolicy,
    RateLimitState,
    Refusal,
    Replica,
    TenantPolicy,
    Ticket,
    TokenUsage,
)
from cluster.scheduling.waiting_room import WaitingRoom
from cluster.vocabulary import RequestClass


class RequestQueue:
    """Fair, bounded queue in front of a changing set of replicas.

    Invariants (tested): a lease or prepaid slot occupies one slot of one replica until it ends; no replica is granted
    more than `max_running`; a ticket ends exactly once, in a lease, a refusal or a cancellation.
    """

    def __init__(
        self,
        classes: Mapping[RequestClass, ClassPolicy],
        weights: ServiceWeights | None = None,
        *,
        policy: QueuePolicy | None = None,
        predictor: OutputPredictor | None = None,
        lease_prefix: str = "",
    ) -> None:
        policy = policy or QueuePolicy()
        self._admission = Admission()
        self._lines = ClassLines(classes, policy)
        self._pools = ReplicaPools()
        self._placement = SessionPlacement(self._pools, policy.routing)
        self._locality: LocalityChooser | None = None
        if policy.fairness == "dlpm":
            self._locality = LocalityChooser(policy.locality_quantum_tokens, self._pools, self._placement)
        self._demand = DemandMeter()
        self._desk = LeaseDesk(
            self._lines,
            self._pools,
            self._admission,
            self._demand,
            weights or ServiceWeights(),
            predictor or OutputPredictor(),
            lease_prefix,
        )
        self._waiting = WaitingRoom(self._lines, self._admission, self._locality)
        self._policies: dict[str, TenantPolicy] = {}
        self._granting = Granting(self._lines, self._pools, self._placement, self._locality, self._waiting, self._desk)
        self.recovery = Recovery(self._lines, self._waiting, self._admission, self._desk, self._placement)
        """After a restart, or when messages to or from a gateway were lost."""

    # --- tenants and replicas -------------------------------------------------------------------------------------

    def set_tenant(self, tenant: str, policy: TenantPolicy, now_s: float) -> None:
        """Set weight and limits; counts and counters are kept."""
        if self._policies.get(tenant) == policy:
            return
        if policy.weight <= 0:
            raise ValueError(f"weight of tenant {tenant!r} must be above 0, got {policy.weight}")
        self._policies[tenant] = policy
        self._lines.set_weight(tenant, policy.weight)
        self._desk.hold_or_unhold(tenant, self._admission.set_limits(tenant, policy.limits, now_s))

    def set_spent(self, tenant: str, tokens: int, usd: float, now_s: float) -> None:
        """What the tenant has spent today (UTC), all models together, for its daily budgets."""
        self._admission.set_spent(tenant, tokens, usd, now_s)

    def rate_limits(self, tenant: str, now_s: float) -> RateLimitState | None:
        """What the tenant's rate limits leave; None when it has none."""
        return self._admission.rate_limits(tenant, now_s)

    def put_replica(self, replica: Replica, now_s: float) -> None:
        """Add a replica, or update its classes, slots and draining mark; what runs on it is kept."""
        known = self._pools.get(replica.replica_id)
        self._pools.put(replica, self._desk.book.taken_on(replica.replica_id) if known is None else 0)
        self._placement.put_replica(replica.replica_id)

    def remove_replica(self, replica_id: str, now_s: float) -> list[Lease]:
        """Forget a replica (gone or dead). Returns the leases it still held: their gateways must be told.

        The leases stay on their tenants' accounts until released, because only the gateway knows what was delivered.
        Prepaid slots there end: nothing was charged for them.
        """
        seat = self._pools.remove(replica_id)
        if seat is None:
            return []
        self._placement.forget_replica(replica_id)
        self._demand.forget_replica(seat.replica.deployment, replica_id, now_s)
        self._desk.book.drop_prepaid_on(replica_id)
        return self._desk.book.on_replica(replica_id)

    def replica(self, replica_id: str) -> Replica | None:
        seat = self._pools.get(replica_id)
        return seat.replica if seat is not None else None

    def replicas(self) -> list[Replica]:
        return self._pools.replicas()

    # --- tickets --------------------------------------------------------------------------------------------------

    def submit(self, ticket: Ticket, now_s: float) -> Refusal | None:
        """Queue a ticket; a refusal says why it may not wait. Follow with `grant`. A known ticket is left alone.

        In a full queue it may take the place of another ticket: see `take_shed`.
        """
        if ticket.ticket_id in self._waiting.by_id:
            return None
        line = self._lines.serving(ticket.request_class)
        if line is None:
            return self._admission.unserved(ticket)
        account = self._admission.account(ticket.tenant, now_s)
        free, flows = self._pools.free_slots(line.index), line.flows
        # Whether those who wait already could use every slot that is free for the class.
        must_wait = (
            flows.ready - flows.aside >= free or self._lines.ready_tickets(self._pools.sharing(line.index)) >= free
        )
        refusal: Refusal | None = None
        if account.limited:
            must_wait = must_wait or not account.may_run
            refusal = self._admission.check(account, ticket, must_wait, now_s)
        service = self._desk.predicted_service(ticket)
        if refusal is None and must_wait:
            refusal = self._waiting.make_room(line, ticket, service, now_s)
        if refusal is not None:
            return refusal
        waiting = self._waiting.enter(line, ticket, account, service)
        if account.limited:
            account.take(waiting.tokens, now_s)
            waiting.paid = True
        self._demand.arrived(ticket.request_class, service, now_s)
        return None

    def take_shed(self) -> list[tuple[Ticket, Refusal]]:
        """Waiting tickets that had to make room since the last call."""
        return self._waiting.take_shed()

    def cancel(self, ticket_id: str, now_s: float) -> bool:
        """Take a waiting ticket out; False when it does not wait (any more). Rate limits get back what it took."""
        return self._waiting.withdraw(ticket_id, now_s, refund=True)

    def expire(self, now_s: float) -> list[tuple[Ticket, Refusal]]:
        """End tickets that waited too long; forget flows that are idle and owe nothing."""
        return self._waiting.expire(now_s)

    def grant(self, now_s: float, max_leases: int | None = None) -> list[Lease]:
        """Hand out every lease that can be had now (at most `max_leases`), in the order of class, fairness, arrival."""
        return self._granting.grant(now_s, max_leases)

    # --- leases ---------------------------------------------------------------------------------------------------

    def progress(self, lease_id: str, output_tokens: int, now_s: float) -> None:
        """A running request has produced `output_tokens` so far; beyond the prediction it is charged as it goes."""
        self._desk.progress(lease_id, output_tokens, now_s)

    def release(self, lease_id: str, usage: TokenUsage | None, now_s: float) -> bool:
        """End a lease. `usage` None: nothing ran (the replica refused or died): the charge is taken back.

        Returns False for an unknown lease (released before, or lost with its owner)."""
        if usage is not None and usage.first_token_s is not None:
            running = self._desk.book.running.get(lease_id)
            if running is not None and running.prefill_ahead is not None:
                tokens = running.prefill_ahead + usage.uncached_tokens
                self._placement.first_token_seen(running.lease.replica_id, tokens, usage.first_token_s)
        return self._desk.release(lease_id, usage, now_s)

    def release_owner(self, owner: str, now_s: float) -> None:
        """A gateway is gone: its waiting tickets, its leases and its prepaid slots end."""
        for ticket_id in self._waiting.of_owner(owner):
            self.cancel(ticket_id, now_s)
        self._desk.end_all_of(owner)

    def prepay(
        self, owner: str, now_s: float, max_leases: int, classes: Iterable[RequestClass] = RequestClass
    ) -> list[Prepaid]:
        """Give `owner` up to `max_leases` free slots to use at once when requests of `classes` come.

        Only on replicas none of whose classes has anybody waiting: a slot held in advance never delays a ticket that is
        here. Ask for them back (`prepaid_of`) when somebody comes to wait.
        """
        return self._desk.prepay(owner, max_leases, class_mask(classes))

    def use_prepaid(self, lease_id: str, ticket: Ticket, granted_at_s: float, now_s: float) -> Lease | None:
        """A request runs on a prepaid slot: from now on it is a lease like any other, charged and counted.

        None for an unknown slot (returned before, or lost with its replica or owner)."""
        lease = self._desk.use_prepaid(lease_id, ticket, granted_at_s, now_s)
        if lease is not None and (ticket.session is not None or ticket.prefix):
            seat = self._pools.get(lease.replica_id)
            if seat is not None:
                ahead = self._placement.placed(ticket, seat, now_s)
                self._desk.book.running[lease_id].prefill_ahead = ahead
        return lease

    def return_prepaid(self, lease_id: str, now_s: float) -> bool:
        """A prepaid slot is not needed; False when it is unknown or in use."""
        return self._desk.return_prepaid(lease_id)

    def room(self, classes: Iterable[RequestClass]) -> tuple[int, int]:
        """Free slots, and all slots, of replicas that serve any of `classes`, and for which nobody waits."""
        return self._pools.room(class_mask(classes), self._lines.ready_mask())

    def prepaid_of(self, owner: str) -> list[Prepaid]:
        return self._desk.book.prepaid_of(owner)

    def counters_snapshot(self) -> dict[str, Any]:
        """The counters of all live flows as plain data, for `recovery.restore_counters` of a fresh queue."""
        return self.recovery.counters_snapshot()

    def configure(self, classes: Mapping[RequestClass, ClassPolicy], policy: QueuePolicy) -> None:
        """New bounds, shares and routing, and classes that are served from now on too. The kind of fairness stays."""
        self._lines.configure(classes, policy)
        self._placement.policy = policy.routing

    # --- what others look at --------------------------------------------------------------------------------------

    def demand(self, deployment: str, own: RequestClass, now_s: float, guests: Iterable[RequestClass] = ()) -> Demand:
        """Backlog, arrivals and speed as the autoscaler of `deployment` needs them. `guests`: classes that have no
        deployment of their own and live with this one."""
        replicas = {r.replica_id: r for r in self._pools.replicas() if r.deployment == deployment}
        prefill_s = sum(self._placement.prefill_s(replica_id, now_s) for replica_id in replicas)
        unused = sum(1 for p in self._desk.book.prepaid.values() if p.replica_id in replicas)
        running = sum(r.running for r in replicas.values()) - unused
        flows = self._lines.of(own).flows
        waiting_guests = sum(self.waiting(c) for c in guests)
        # Who waits for a limit of the own tenant is not helped by more replicas.
        backlog = flows.backlog * flows.ready / len(flows) if len(flows) else 0.0
        return self._demand.read(deployment, own, flows.ready, backlog, running, waiting_guests, now_s, prefill_s)

    def taken_on(self, replica_id: str) -> int:
        """Slots of a replica that leases and prepaid slots take; 0 for an unknown one."""
        replica = self.replica(replica_id)
        return replica.running if replica is not None else 0

    def waiting(self, request_class: RequestClass) -> int:
        return len(self._lines.of(request_class).flows)

    def contended(self) -> set[RequestClass]:
        """Classes in which somebody waits for a slot (and not for a limit of its own tenant)."""
        return {line.request_class for line in self._lines if line.flows.ready}

    def waiting_by_tenant(self) -> dict[RequestClass, dict[str, int]]:
        return {line.request_class: line.flows.waiting_by_tenant() for line in self._lines}

    def running_by_tenant(self) -> dict[RequestClass, dict[str, int]]:
        return {line.request_class: {} for line in self._lines} | self._desk.book.by_class_and_tenant()

    def tickets(self) -> list[Ticket]:
        """Everything that waits."""
        return self._waiting.tickets()

    def leases(self) -> list[Lease]:
        return self._desk.book.leases()

    def counters(self) -> dict[RequestClass, dict[str, float]]:
        """Virtual token counters: weighted service per class and tenant."""
        return {line.request_class: line.flows.counters() for line in self._lines}

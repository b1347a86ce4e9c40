"""The shared multitenant request queue of one model: tickets in, leases out.

Composes the policies: admission limits, class order, token-fair queue per class, placement. The live dispatcher and
the simulator drive the same object; every call takes the time, nothing sleeps, nothing does I/O, one caller at a time.

Owns: who waits, who runs where, and what each tenant has been charged.
Must not know: Ray, HTTP, engines, the configuration file.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count

from cluster.scheduling.admission import Admission
from cluster.scheduling.class_order import ClassOrder
from cluster.scheduling.demand import Demand, DemandMeter
from cluster.scheduling.fair_queue import FairQueue
from cluster.scheduling.placement import SessionPlacement
from cluster.scheduling.service import OutputPredictor, ServiceWeights
from cluster.scheduling.types import ClassPolicy, Lease, Refusal, Replica, TenantPolicy, Ticket, TokenUsage
from cluster.vocabulary import RequestClass


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A ticket with the service it was predicted to need when it came."""

    ticket: Ticket
    service: float


@dataclass(slots=True)
class _Running:
    """A lease with what was charged for it so far."""

    lease: Lease
    charged: float
    predicted_output: int
    reported_output: int = 0


class RequestQueue:
    """Fair, bounded queue in front of a changing set of replicas.

    Invariants (tested): a lease occupies one slot of one replica until `release` or `release_owner`; no replica is
    granted more than `max_running`; a ticket ends exactly once, in a lease, a refusal or a cancellation.
    """

    def __init__(
        self,
        classes: Mapping[RequestClass, ClassPolicy],
        weights: ServiceWeights | None = None,
        *,
        predictor: OutputPredictor | None = None,
        lease_prefix: str = "",
    ) -> None:
        self._weights = weights or ServiceWeights()
        self._predictor = predictor or OutputPredictor()
        self._admission = Admission(classes)
        self._order = ClassOrder({c: p.floor for c, p in classes.items()})
        self._queues = {c: FairQueue() for c in classes}
        self._placement = SessionPlacement()
        self._demand = DemandMeter()
        self._replicas: dict[str, Replica] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._backlog = dict.fromkeys(classes, 0.0)
        self._expiry: list[tuple[float, str]] = []
        self._running: dict[str, _Running] = {}
        self._lease_ids = count()
        self._lease_prefix = lease_prefix

    # --- tenants and replicas -------------------------------------------------------------------------------------

    def set_tenant(self, tenant: str, policy: TenantPolicy, now_s: float) -> None:
        """Set weight and limits; counts and counters are kept."""
        self._admission.set_limits(tenant, policy.limits, now_s)
        for queue in self._queues.values():
            queue.set_weight(tenant, policy.weight)
        self._hold_or_unhold(tenant, now_s)

    def put_replica(self, replica: Replica, now_s: float) -> None:
        """Add a replica, or update its classes, slots and draining mark; what runs on it is kept."""
        known = self._replicas.get(replica.replica_id)
        running = sum(1 for r in self._running.values() if r.lease.replica_id == replica.replica_id)
        replica.running = known.running if known else running
        self._replicas[replica.replica_id] = replica

    def remove_replica(self, replica_id: str, now_s: float) -> list[Lease]:
        """Forget a replica (gone or dead). Returns the leases it still held: their gateways must be told.

        The leases stay on their tenants' accounts until released, because only the gateway knows what was delivered.
        """
        replica = self._replicas.pop(replica_id, None)
        if replica is None:
            return []
        self._placement.forget_replica(replica_id)
        self._demand.forget_replica(replica.deployment, replica_id, now_s)
        return [r.lease for r in self._running.values() if r.lease.replica_id == replica_id]

    def replicas(self) -> list[Replica]:
        return list(self._replicas.values())

    # --- tickets --------------------------------------------------------------------------------------------------

    def submit(self, ticket: Ticket, now_s: float) -> Refusal | None:
        """Queue a ticket; a refusal says why it may not wait. Follow with `grant`. A known ticket is left alone."""
        if ticket.ticket_id in self._waiting:
            return None
        queue = self._queues.get(ticket.request_class)
        if queue is None:
            return self._admission.unserved(ticket)
        must_wait = len(queue) > 0 or not self._candidates(ticket.request_class)
        refusal = self._admission.check(ticket, len(queue), must_wait, now_s)
        if refusal is not None:
            return refusal
        self._admission.enqueued(ticket, now_s)
        self._enqueue(ticket, queue, now_s)
        self._demand.arrived(ticket.request_class, self._waiting[ticket.ticket_id].service, now_s)
        return None

    def restore(self, waiting: Iterable[Ticket], running: Iterable[Lease], now_s: float) -> None:
        """Take back what a gateway still holds after this queue's state was lost. Limits are not applied again."""
        for ticket in waiting:
            if ticket.ticket_id not in self._waiting and ticket.request_class in self._queues:
                self._admission.restored(ticket, now_s)
                self._enqueue(ticket, self._queues[ticket.request_class], now_s)
        for lease in running:
            if lease.lease_id not in self._running:
                self._admission.account(lease.ticket.tenant, now_s).running += 1
                self._start(lease, self._predictor.predict(lease.ticket.tenant, lease.ticket.max_output_tokens))

    def cancel(self, ticket_id: str, now_s: float) -> bool:
        """Take a waiting ticket out; False when it does not wait (any more)."""
        waiting = self._waiting.get(ticket_id)
        if waiting is None:
            return False
        self._queues[waiting.ticket.request_class].remove(waiting.ticket)
        self._left(waiting)
        self._admission.left(waiting.ticket, now_s)
        return True

    def reconcile_owner(self, owner: str, waiting: Iterable[Ticket], running: Iterable[Lease], now_s: float) -> None:
        """Make a gateway's own list the truth about what it has here: messages between the two may have been lost.

        Leases it does not list end unused, tickets it does not list are withdrawn, what is missing here is restored.
        """
        waiting, running = list(waiting), list(running)
        held = {lease.lease_id for lease in running}
        for lease in [r.lease for r in self._running.values() if r.lease.ticket.owner == owner]:
            if lease.lease_id not in held:
                self.release(lease.lease_id, None, now_s)
        wanted = {ticket.ticket_id for ticket in waiting}
        for ticket_id in [i for i, w in self._waiting.items() if w.ticket.owner == owner and i not in wanted]:
            self.cancel(ticket_id, now_s)
        self.restore(waiting, running, now_s)

    def expire(self, now_s: float) -> list[tuple[Ticket, Refusal]]:
        """End tickets that waited too long."""
        refusals = []
        while self._expiry and self._expiry[0][0] <= now_s:
            _, ticket_id = heapq.heappop(self._expiry)
            waiting = self._waiting.get(ticket_id)
            if waiting is not None and self.cancel(ticket_id, now_s):
                refusals.append((waiting.ticket, self._admission.expired(waiting.ticket, now_s)))
        return refusals

    def grant(self, now_s: float) -> list[Lease]:
        """Hand out every lease that can be had now, in the order of class, fairness and arrival."""
        leases = []
        while (lease := self._grant_one(now_s)) is not None:
            leases.append(lease)
        return leases

    # --- leases ---------------------------------------------------------------------------------------------------

    def progress(self, lease_id: str, output_tokens: int, now_s: float) -> None:
        """A running request has produced `output_tokens` so far; beyond the prediction it is charged as it goes."""
        running = self._running.get(lease_id)
        if running is None or output_tokens <= running.reported_output:
            return
        produced = output_tokens - running.reported_output
        running.reported_output = output_tokens
        beyond = output_tokens - max(running.predicted_output, output_tokens - produced)
        if beyond > 0:
            self._charge(running, self._weights.of(0, beyond), now_s)
        self._worked(running, self._weights.of(0, produced), now_s)

    def release(self, lease_id: str, usage: TokenUsage | None, now_s: float) -> bool:
        """End a lease. `usage` None: nothing ran (the replica refused or died): the charge is taken back.

        Returns False for an unknown lease (released before, or lost with its replica)."""
        running = self._running.get(lease_id)
        if running is None:
            return False
        ticket = running.lease.ticket
        actual = self._weights.of_usage(usage) if usage else 0.0
        self._charge(running, actual - running.charged, now_s)
        if usage is not None:
            self._predictor.observe(ticket.tenant, usage.output_tokens)
            unreported = self._weights.of(usage.uncached_tokens, max(0, usage.output_tokens - running.reported_output))
            self._worked(running, unreported, now_s)
            self._admission.settle(ticket, usage, now_s)
        self._end(lease_id, now_s)
        return True

    def release_owner(self, owner: str, now_s: float) -> None:
        """A gateway is gone: its waiting tickets and its leases end."""
        for ticket_id in [i for i, w in self._waiting.items() if w.ticket.owner == owner]:
            self.cancel(ticket_id, now_s)
        for running in [r for r in self._running.values() if r.lease.ticket.owner == owner]:
            self._end(running.lease.lease_id, now_s)

    # --- what others look at --------------------------------------------------------------------------------------

    def demand(self, deployment: str, own: RequestClass, now_s: float) -> Demand:
        """Backlog, arrivals and speed as the autoscaler of `deployment` needs them."""
        replicas = [r for r in self._replicas.values() if r.deployment == deployment]
        running = sum(r.running for r in replicas)
        return self._demand.read(deployment, own, len(self._queues[own]), self._backlog[own], running, now_s)

    def waiting(self, request_class: RequestClass) -> int:
        return len(self._queues[request_class])

    def waiting_by_tenant(self) -> dict[RequestClass, dict[str, int]]:
        return {c: {t: q.waiting_of(t) for t in q.tenants()} for c, q in self._queues.items()}

    def running_by_tenant(self) -> dict[RequestClass, dict[str, int]]:
        counts: dict[RequestClass, dict[str, int]] = {c: {} for c in self._queues}
        for running in self._running.values():
            ticket = running.lease.ticket
            per_tenant = counts.setdefault(ticket.request_class, {})
            per_tenant[ticket.tenant] = per_tenant.get(ticket.tenant, 0) + 1
        return counts

    def leases(self) -> list[Lease]:
        return [r.lease for r in self._running.values()]

    def counters(self) -> dict[RequestClass, dict[str, float]]:
        """Virtual token counters: weighted service per class and tenant."""
        return {c: q.counters() for c, q in self._queues.items()}

    # --- inside ---------------------------------------------------------------------------------------------------

    def _enqueue(self, ticket: Ticket, queue: FairQueue, now_s: float) -> None:
        waiting = self._waiting[ticket.ticket_id] = _Waiting(ticket, self._predicted_service(ticket))
        self._backlog[ticket.request_class] += waiting.service
        queue.push(ticket)
        self._hold_or_unhold(ticket.tenant, now_s)
        expires_at_s = ticket.expires_at_s
        if expires_at_s is None:
            expires_at_s = ticket.arrived_at_s + self._admission.max_wait_s(ticket.request_class)
        heapq.heappush(self._expiry, (expires_at_s, ticket.ticket_id))

    def _candidates(self, request_class: RequestClass, avoid: tuple[str, ...] = ()) -> list[Replica]:
        able = [r for r in self._replicas.values() if request_class in r.serves and not r.draining]
        if avoid:
            # A replica that fails is always free: only waiting for the others keeps a retry from it.
            able = [r for r in able if r.replica_id not in avoid] or able
        return [r for r in able if r.free > 0]

    def _grant_one(self, now_s: float) -> Lease | None:
        waiting = [c for c, q in self._queues.items() if len(q)]
        for request_class in self._order.order(waiting):
            ticket = self._queues[request_class].peek()
            if ticket is None:
                continue
            replica = self._placement.choose(ticket, self._candidates(request_class, ticket.avoid))
            if replica is not None:
                return self._lease(ticket, replica, now_s)
        return None

    def _lease(self, ticket: Ticket, replica: Replica, now_s: float) -> Lease:
        self._queues[ticket.request_class].pop()
        self._left(self._waiting[ticket.ticket_id])
        self._admission.started(ticket, now_s)
        lease = Lease(f"{self._lease_prefix}{next(self._lease_ids)}", ticket, replica.replica_id, now_s)
        predicted = self._predictor.predict(ticket.tenant, ticket.max_output_tokens)
        self._start(lease, predicted)
        self._charge(self._running[lease.lease_id], self._weights.of(ticket.prompt_tokens, predicted), now_s)
        self._hold_or_unhold(ticket.tenant, now_s)
        return lease

    def _left(self, waiting: _Waiting) -> None:
        del self._waiting[waiting.ticket.ticket_id]
        request_class = waiting.ticket.request_class
        # An empty queue has no backlog: resets what rounding has left.
        self._backlog[request_class] = self._backlog[request_class] - waiting.service if len(self._waiting) else 0.0

    def _start(self, lease: Lease, predicted: int) -> None:
        self._running[lease.lease_id] = _Running(lease, charged=0.0, predicted_output=predicted)
        replica = self._replicas.get(lease.replica_id)
        if replica is not None:
            replica.running += 1

    def _end(self, lease_id: str, now_s: float) -> None:
        running = self._running.pop(lease_id)
        replica = self._replicas.get(running.lease.replica_id)
        if replica is not None:
            replica.running -= 1
        self._admission.finished(running.lease.ticket.tenant, now_s)
        self._hold_or_unhold(running.lease.ticket.tenant, now_s)

    def _charge(self, running: _Running, service: float, now_s: float) -> None:
        ticket = running.lease.ticket
        running.charged += service
        self._queues[ticket.request_class].charge(ticket.tenant, service)
        replica = self._replicas.get(running.lease.replica_id)
        self._order.served(ticket.request_class, replica.serves if replica else (ticket.request_class,), service)

    def _worked(self, running: _Running, service: float, now_s: float) -> None:
        replica = self._replicas.get(running.lease.replica_id)
        if replica is not None:
            self._demand.worked(replica.deployment, replica.replica_id, service, now_s)

    def _predicted_service(self, ticket: Ticket) -> float:
        predicted = self._predictor.predict(ticket.tenant, ticket.max_output_tokens)
        return self._weights.of(ticket.prompt_tokens, predicted)

    def _hold_or_unhold(self, tenant: str, now_s: float) -> None:
        may_run = self._admission.account(tenant, now_s).may_run
        for queue in self._queues.values():
            if may_run:
                queue.unhold(tenant)
            else:
                queue.hold(tenant)

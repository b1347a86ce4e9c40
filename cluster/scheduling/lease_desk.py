"""Leases from grant to release: slots taken, service charged, limits settled; and slots that gateways hold in advance.

Charges follow VTC with prediction: the prompt and the predicted output when the lease begins, output beyond the
prediction as it is produced, and at the end the difference to what the engine reports, on the same path of the tree
(tenant, key, program) and on the same account of the class order. The sum of a lease's charges is its usage.

Owns: the book of leases, and what each of them was charged. Must not know: who waits and who is next.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from cluster.scheduling.admission import Admission
from cluster.scheduling.class_lines import ClassLine, ClassLines
from cluster.scheduling.class_order import NORMAL, class_mask
from cluster.scheduling.demand import DemandMeter
from cluster.scheduling.flow_tree import charge, pass_through
from cluster.scheduling.flows import Flow, Waiting
from cluster.scheduling.lease_book import LeaseBook, Running
from cluster.scheduling.limits import TenantAccount
from cluster.scheduling.replica_pools import ReplicaPools, Seat
from cluster.scheduling.service import OutputPredictor, ServiceWeights
from cluster.scheduling.types import Lease, Prepaid, Ticket, TokenUsage


class LeaseDesk:
    """Begins, charges and ends leases."""

    def __init__(
        self,
        lines: ClassLines,
        pools: ReplicaPools,
        admission: Admission,
        demand: DemandMeter,
        service: ServiceWeights,
        predictor: OutputPredictor,
        lease_prefix: str,
    ) -> None:
        self.book = LeaseBook()
        self.granted_at_s = float("-inf")
        """The latest time at which a lease began: all leases up to it are in the counters."""
        self._lines = lines
        self._pools = pools
        self._admission = admission
        self._demand = demand
        self._service = service
        self._input_weight = service.input_weight
        self._output_weight = service.output_weight
        self._predictor = predictor
        self._ids = count()
        self._prefix = lease_prefix

    def predicted_service(self, ticket: Ticket) -> float:
        output = self._predictor.predict(ticket.tenant, ticket.max_output_tokens)
        return self._input_weight * ticket.prompt_tokens + self._output_weight * output

    def begin(self, line: ClassLine, waiting: Waiting, seat: Seat, now_s: float) -> Lease:
        """The ticket, which has left its line, runs on a slot of `seat`."""
        ticket = waiting.ticket
        lease = Lease(f"{self._prefix}{next(self._ids)}", ticket, seat.replica_id, now_s)
        seat.take()
        account = self._admission.started(ticket.tenant, waiting.tokens, now_s)
        order = self._lines.order
        way = order.way(line.index, seat.mask) if order.contended else NORMAL
        self._enter(lease, waiting.flow, line.index, seat.mask, way, account).paid = waiting.paid
        return lease

    def progress(self, lease_id: str, output_tokens: int, now_s: float) -> None:
        running = self.book.running.get(lease_id)
        if running is None or output_tokens <= running.reported_output:
            return
        produced = output_tokens - running.reported_output
        running.reported_output = output_tokens
        beyond = min(produced, output_tokens - running.predicted_output)
        if beyond > 0:
            self._charge(running, self._service.of(0, beyond))
        self._worked(running.lease.replica_id, self._service.of(0, produced), now_s)

    def release(self, lease_id: str, usage: TokenUsage | None, now_s: float, refund: bool = True) -> bool:
        """`refund` False: that nothing ran is a guess, which the rate limits need not believe."""
        running = self.book.running.get(lease_id)
        if running is None:
            return False
        lease = running.lease
        ticket = lease.ticket
        account = self._admission.account(ticket.tenant, now_s)
        if usage is None:
            self._charge(running, -running.charged)
            if refund and running.paid:
                self._admission.refund(ticket, now_s)
        else:
            output = usage.output_tokens
            prefill = self._input_weight * usage.uncached_tokens
            self._charge(running, prefill + self._output_weight * output - running.charged)
            if ticket.max_output_tokens:  # what writes nothing (vectors, token counts) says nothing about answers
                self._predictor.observe(ticket.tenant, output)
            unreported = max(0, output - running.reported_output)
            self._worked(lease.replica_id, prefill + self._output_weight * unreported, now_s)
            self._admission.settle(account, ticket, usage, now_s)
            self._lines.all[running.index].ran(now_s - lease.granted_at_s)
        self._end(running, account)
        return True

    def end_all_of(self, owner: str, now_s: float) -> None:
        """The owner is gone: what ran for it is not known, so its charges stay."""
        for lease in self.book.of_owner(owner):
            self._end(self.book.running[lease.lease_id], self._admission.account(lease.ticket.tenant, now_s))
        for prepaid in self.book.prepaid_of(owner):
            self.return_prepaid(prepaid.lease_id)

    # --- prepaid slots --------------------------------------------------------------------------------------------

    def prepay(self, owner: str, max_leases: int, classes: int) -> list[Prepaid]:
        """On replicas that serve any of `classes` (bits)."""
        given: list[Prepaid] = []
        contended = self._lines.ready_mask()
        while len(given) < max_leases:
            seat = self._pools.least_loaded_for(classes, contended)
            if seat is None:
                break
            seat.take()
            replica = seat.replica
            slot = Prepaid(f"{self._prefix}{next(self._ids)}", replica.replica_id, replica.serves, owner)
            self.book.prepaid[slot.lease_id] = slot
            given.append(slot)
        return given

    def use_prepaid(self, lease_id: str, ticket: Ticket, granted_at_s: float, now_s: float) -> Lease | None:
        slot = self.book.prepaid.pop(lease_id, None)
        if slot is None:
            return None
        line = self._lines.of(ticket.request_class)
        flow = line.flows.flow_of(ticket)
        pass_through(flow)
        self._admission.enqueued(self._admission.account(ticket.tenant, now_s), ticket, now_s)
        account = self._admission.started(ticket.tenant, ticket.limit_tokens, now_s)
        self._demand.arrived(ticket.request_class, self.predicted_service(ticket), now_s)
        lease = Lease(lease_id, ticket, slot.replica_id, granted_at_s)
        self._enter(lease, flow, line.index, class_mask(slot.serves), NORMAL, account).paid = True
        return lease

    def return_prepaid(self, lease_id: str) -> bool:
        slot = self.book.prepaid.pop(lease_id, None)
        if slot is None:
            return False
        self._give_slot_back(slot.replica_id)
        return True

    # --- after a restart or lost messages -------------------------------------------------------------------------

    def restore(
        self, leases: Iterable[Lease], prepaid: Iterable[Prepaid], charged_until_s: float, now_s: float
    ) -> None:
        """Take over leases of a former queue. Those begun until `charged_until_s` are in the restored counters."""
        for lease in leases:
            if lease.lease_id in self.book.running:
                continue
            # The gateway has used a slot that it held in advance, and the news of it was lost.
            self.return_prepaid(lease.lease_id)
            ticket = lease.ticket
            line = self._lines.of(ticket.request_class)
            seat = self._pools.get(lease.replica_id)
            if seat is not None:
                seat.take()
            account = self._admission.account(ticket.tenant, now_s)
            account.running += 1
            mask = seat.mask if seat is not None else 1 << line.index
            flow, charged = line.flows.flow_of(ticket), lease.granted_at_s <= charged_until_s
            self._enter(lease, flow, line.index, mask, NORMAL, account, charged)
        for slot in prepaid:
            if slot.lease_id not in self.book.prepaid and slot.lease_id not in self.book.running:
                self.book.prepaid[slot.lease_id] = slot
                seat = self._pools.get(slot.replica_id)
                if seat is not None:
                    seat.take()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _enter(
        self,
        lease: Lease,
        flow: Flow,
        index: int,
        mask: int,
        way: int,
        account: TenantAccount,
        charged_before: bool = False,
    ) -> Running:
        """Note the lease and charge its prediction, unless restored counters hold that already."""
        ticket = lease.ticket
        predicted = self._predictor.predict(ticket.tenant, ticket.max_output_tokens)
        running = self.book.running[lease.lease_id] = Running(lease, flow, index, mask, predicted, way)
        flow.running += 1
        if lease.granted_at_s > self.granted_at_s:
            self.granted_at_s = lease.granted_at_s
        service = self._input_weight * ticket.prompt_tokens + self._output_weight * predicted
        if charged_before:
            running.charged = service
        else:
            self._charge(running, service)
        if account.limits.max_concurrent is not None:
            self.hold_or_unhold(ticket.tenant, account)
        return running

    def _charge(self, running: Running, service: float) -> None:
        running.charged += service
        charge(running.flow, service)
        tenant = running.flow.tenant
        if tenant.waiting and not tenant.touched:
            self._lines.all[running.index].shed.touch(tenant)
        order = self._lines.order
        if running.way or order.contended:
            order.served(running.index, running.mask, service, running.way)

    def _worked(self, replica_id: str, service: float, now_s: float) -> None:
        seat = self._pools.get(replica_id)
        if seat is not None:
            self._demand.worked(seat.replica.deployment, replica_id, service, now_s)

    def _end(self, running: Running, account: TenantAccount) -> None:
        del self.book.running[running.lease.lease_id]
        self._give_slot_back(running.lease.replica_id)
        running.flow.running -= 1
        self._lines.all[running.index].flows.left(running.flow)
        account.running -= 1
        if account.limits.max_concurrent is not None:
            self.hold_or_unhold(running.lease.ticket.tenant, account)

    def _give_slot_back(self, replica_id: str) -> None:
        seat = self._pools.get(replica_id)
        if seat is not None:
            seat.give_back()

    def hold_or_unhold(self, tenant: str, account: TenantAccount) -> None:
        """Tenants at their limit of running requests are left out of the choice."""
        if account.may_run:
            self._lines.unhold(tenant)
        else:
            self._lines.hold(tenant)

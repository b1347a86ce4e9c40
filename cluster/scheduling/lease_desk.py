"""Leases from grant to release: slots taken, service charged, limits settled; and slots that gateways hold in advance.

Charges follow VTC with prediction: the prompt and the predicted output when the lease begins, output beyond the
prediction as it is produced, and at the end the difference to what the engine reports, on the same path of the tree
(tenant, key, program) and on the same account of the class order. The sum of a lease's charges is its usage.

Owns: the book of leases, and what each of them was charged. Must not know: who waits and who is next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
        self._lines = lines
        self._order = lines.order
        self._pools = pools
        self._admission = admission
        self._demand = demand
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
        lease = Lease(f"{self._prefix}{next(self._ids)}", waiting.ticket, seat.replica_id, now_s)
        seat.take()
        account = waiting.account
        account.started(waiting.tokens, now_s)
        way = self._order.way(line.index, seat.mask) if self._order.contended else NORMAL
        self._enter(lease, waiting.flow, account, line, seat.mask, way).paid = waiting.paid
        return lease

    def progress(self, lease_id: str, output_tokens: int, now_s: float) -> None:
        running = self.book.running.get(lease_id)
        if running is None or output_tokens <= running.reported_output:
            return
        produced = output_tokens - running.reported_output
        running.reported_output = output_tokens
        beyond = min(produced, output_tokens - running.predicted_output)
        if beyond > 0:
            self._charge(running, self._output_weight * beyond)
        self._worked(self._pools.get(running.lease.replica_id), self._output_weight * produced, now_s)

    def release(self, lease_id: str, usage: TokenUsage | None, now_s: float, refund: bool = True) -> bool:
        """`refund` False: that nothing ran is a guess, which the rate limits need not believe."""
        running = self.book.running.get(lease_id)
        if running is None:
            return False
        seat = self._pools.get(running.lease.replica_id)
        if usage is not None:
            self._settle(running, seat, usage, now_s)
        else:
            self._charge(running, -running.charged)
            if refund and running.paid:
                running.account.take(-running.lease.ticket.limit_tokens, now_s, requests=-1)
        self._end(running, seat)
        return True

    def end_all_of(self, owner: str) -> None:
        """The owner is gone: what ran for it is not known, so its charges stay."""
        for lease in self.book.of_owner(owner):
            self._end(self.book.running[lease.lease_id], self._pools.get(lease.replica_id))
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
        account, tokens = self._admission.account(ticket.tenant, now_s), ticket.limit_tokens
        account.came(tokens)
        account.started(tokens, now_s)
        account.take(tokens, now_s)
        self._demand.arrived(ticket.request_class, self.predicted_service(ticket), now_s)
        lease = Lease(lease_id, ticket, slot.replica_id, granted_at_s)
        self._enter(lease, flow, account, line, class_mask(slot.serves), NORMAL).paid = account.limited
        return lease

    def return_prepaid(self, lease_id: str) -> bool:
        slot = self.book.prepaid.pop(lease_id, None)
        if slot is None:
            return False
        seat = self._pools.get(slot.replica_id)
        if seat is not None:
            seat.give_back()
        return True

    # --- after a restart or lost messages -------------------------------------------------------------------------

    def restore(
        self, leases: Iterable[Lease], prepaid: Iterable[Prepaid], produced: Mapping[str, int], now_s: float
    ) -> None:
        """Take over leases of a former queue, and charge them: restored counters do not hold what still runs.
        `produced`: output so far, by lease, which this queue's replicas have not been seen to do."""
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
            flow, output = line.flows.flow_of(ticket), produced.get(lease.lease_id, 0)
            self._enter(lease, flow, account, line, mask, NORMAL, output)
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
        account: TenantAccount,
        line: ClassLine,
        mask: int,
        way: int,
        produced: int = 0,
    ) -> Running:
        """Note the lease and charge its prediction, or what it has `produced` already if that is more."""
        ticket = lease.ticket
        output = self._predictor.predict(ticket.tenant, ticket.max_output_tokens)
        if produced > output:
            output = produced
        running = self.book.running[lease.lease_id] = Running(lease, flow, account, line, mask, output, way)
        running.reported_output = produced
        flow.running += 1
        self._charge(running, self._input_weight * ticket.prompt_tokens + self._output_weight * output)
        if account.limits.max_concurrent is not None:
            self.hold_or_unhold(ticket.tenant, account)
        return running

    def _settle(self, running: Running, seat: Seat | None, usage: TokenUsage, now_s: float) -> None:
        """Correct all that was assumed by what was used."""
        lease, account, output = running.lease, running.account, usage.output_tokens
        ticket = lease.ticket
        prefill = self._input_weight * usage.uncached_tokens
        self._charge(running, prefill + self._output_weight * output - running.charged)
        if ticket.max_output_tokens:  # what writes nothing (vectors, token counts) says nothing about answers
            self._predictor.observe(ticket.tenant, output)
        unreported = max(0, output - running.reported_output)
        self._worked(seat, prefill + self._output_weight * unreported, now_s, lease.granted_at_s)
        if account.limited:
            used = usage.prompt_tokens + output
            if running.paid:
                account.take(used - ticket.limit_tokens, now_s, requests=0)
            account.spend(used, now_s)
        running.line.ran(now_s - lease.granted_at_s)

    def _charge(self, running: Running, service: float) -> None:
        if not service:
            return
        running.charged += service
        charge(running.flow, service)
        tenant = running.flow.tenant
        if tenant.waiting and not tenant.touched:
            running.line.shed.touch(tenant)
        if running.way or self._order.contended:
            self._order.served(running.line.index, running.mask, service, running.way)

    def _worked(self, seat: Seat | None, service: float, now_s: float, ended: float | None = None) -> None:
        if seat is not None:
            busy = bool(self._lines.ready_mask() & seat.mask)
            self._demand.worked(seat.replica.deployment, seat.replica_id, service, now_s, busy, ended)

    def _end(self, running: Running, seat: Seat | None) -> None:
        lease, flow, account = running.lease, running.flow, running.account
        del self.book.running[lease.lease_id]
        if seat is not None:
            seat.give_back()
        flow.running -= 1
        if not (flow.running or flow.waiting):
            running.line.flows.left(flow)
        account.running -= 1
        if account.limits.max_concurrent is not None:
            self.hold_or_unhold(lease.ticket.tenant, account)

    def hold_or_unhold(self, tenant: str, account: TenantAccount) -> None:
        """Tenants at their limit of running requests are left out of the choice."""
        if account.may_run:
            self._lines.unhold(tenant)
        else:
            self._lines.hold(tenant)

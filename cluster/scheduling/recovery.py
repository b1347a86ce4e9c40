"""What becomes of a queue's state when its process dies, or when messages between it and a gateway are lost.

    told counter = counter - what was charged for requests that still run

Gateways keep what is told and bring it back, with all that waits and runs. What runs is charged anew then, with what it
has produced so far: so it does not matter what the former queue had predicted for it, nor in which order gateways come,
and in the end every request has been charged its usage, once. What is told only rises, so of several snapshots the
higher value is the later one.

Owns: snapshots, and the order in which things come back. Must not know: who goes next, messages, Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from cluster.scheduling.admission import Admission
from cluster.scheduling.class_lines import ClassLines
from cluster.scheduling.lease_desk import LeaseDesk
from cluster.scheduling.placement import SessionPlacement
from cluster.scheduling.types import Lease, Prepaid, Refusal, Ticket
from cluster.scheduling.waiting_room import WaitingRoom
from cluster.vocabulary import RequestClass

NOTHING_YET: Final[Mapping[str, int]] = {}
KEEPS_PLACE_S = 15.0
"""How long after the first gateway has come back tickets find their flows' restored counters as they were."""


class Recovery:
    """Takes snapshots, lays them over a fresh queue, and brings what gateways hold back into it."""

    def __init__(
        self,
        lines: ClassLines,
        waiting: WaitingRoom,
        admission: Admission,
        desk: LeaseDesk,
        placement: SessionPlacement,
    ) -> None:
        self._lines = lines
        self._waiting = waiting
        self._admission = admission
        self._desk = desk
        self._placement = placement
        self._first_restored_at_s: float | None = None
        self._version = 0

    def counters_snapshot(self) -> dict[str, Any]:
        """The counters of all live flows as plain data: `restore_counters` of a fresh queue takes it."""
        self._version += 1
        unsettled = self._desk.book.unsettled()
        lines = {line.request_class.value: line.flows.snapshot(unsettled) for line in self._lines}
        return {"version": self._version, "classes": lines}

    def restore_counters(self, snapshot: Mapping[str, Any]) -> None:
        """Raise the counters to those of a snapshot. Several snapshots may be applied; call before `restore`."""
        self._version = max(self._version, snapshot["version"])
        for name, flows in snapshot["classes"].items():
            self._lines.of(RequestClass(name)).flows.restore(flows)

    def restore(
        self,
        waiting: Iterable[Ticket],
        running: Iterable[Lease],
        now_s: float,
        prepaid: Iterable[Prepaid] = (),
        produced: Mapping[str, int] = NOTHING_YET,
    ) -> list[tuple[Ticket, Refusal]]:
        """Take back what a gateway still holds after the queue's state was lost; `produced`: output so far, by lease.
        Limits are not applied again.

        Returns refusals for tickets of classes that nobody serves any more."""
        running = list(running)
        # Before the tickets: whoever comes to wait is lifted to counters that hold what runs.
        self._desk.restore(running, prepaid, produced, now_s)
        for lease in running:
            self._placement.remember(lease.ticket, lease.replica_id)
        return self._restore_waiting(waiting, now_s)

    def _restore_waiting(self, waiting: Iterable[Ticket], now_s: float) -> list[tuple[Ticket, Refusal]]:
        refusals = []
        if self._first_restored_at_s is None:
            self._first_restored_at_s = now_s
        # Later than that a low restored counter would be credit for idle time.
        in_place = now_s - self._first_restored_at_s <= KEEPS_PLACE_S
        for ticket in sorted(waiting, key=lambda ticket: ticket.arrived_at_s):
            if ticket.ticket_id in self._waiting.by_id:
                continue
            line = self._lines.serving(ticket.request_class)
            if line is None:
                refusals.append((ticket, self._admission.unserved(ticket)))
                continue
            account = self._admission.account(ticket.tenant, now_s)
            self._waiting.enter(line, ticket, account, self._desk.predicted_service(ticket), in_place)
        return refusals

    def reconcile_owner(
        self,
        owner: str,
        waiting: Iterable[Ticket],
        running: Iterable[Lease],
        now_s: float,
        prepaid: Iterable[Prepaid] = (),
        produced: Mapping[str, int] = NOTHING_YET,
    ) -> list[tuple[Ticket, Refusal]]:
        """Make a gateway's own list the truth about what it has here: messages between the two may have been lost.

        Leases and prepaid slots it does not list end unused, tickets it does not list are withdrawn (rate limits get
        nothing back: they may have run, and the news of it was lost), what is missing here is restored. Returns
        refusals for what cannot be.
        """
        waiting, running, prepaid = list(waiting), list(running), list(prepaid)
        held = {lease.lease_id for lease in running} | {slot.lease_id for slot in prepaid}
        for lease in self._desk.book.of_owner(owner):
            if lease.lease_id not in held:
                self._desk.release(lease.lease_id, None, now_s, refund=False)
        for slot in self._desk.book.prepaid_of(owner):
            if slot.lease_id not in held:
                self._desk.return_prepaid(slot.lease_id)
        wanted = {ticket.ticket_id for ticket in waiting}
        for ticket_id in self._waiting.of_owner(owner, but=wanted):
            self._waiting.withdraw(ticket_id, now_s, refund=False)
        for lease_id, output_tokens in produced.items():
            self._desk.progress(lease_id, output_tokens, now_s)
        return self.restore(waiting, running, now_s, prepaid, produced)

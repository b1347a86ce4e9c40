"""Everything that waits, by ticket: in, out, overdue, and who has to make room.

Owns: which tickets wait, and that class lines, locality and the tenants' accounts agree on it.
Must not know: replicas, leases, who goes next.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from cluster.scheduling.admission import Admission
from cluster.scheduling.class_lines import ClassLine, ClassLines
from cluster.scheduling.flows import Waiting
from cluster.scheduling.limits import TenantAccount
from cluster.scheduling.locality import LocalityChooser
from cluster.scheduling.types import Refusal, Ticket


class WaitingRoom:
    """Waiting tickets of all classes. Iterating gives their ids, oldest entry first."""

    def __init__(self, lines: ClassLines, admission: Admission, locality: LocalityChooser | None) -> None:
        self._lines = lines
        self._admission = admission
        self._locality = locality
        self.by_id: dict[str, Waiting] = {}
        self._shed: list[tuple[Ticket, Refusal]] = []

    def __len__(self) -> int:
        return len(self.by_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_id)

    def tickets(self) -> list[Ticket]:
        return [waiting.ticket for waiting in self.by_id.values()]

    def of_owner(self, owner: str, but: Collection[str] = ()) -> list[str]:
        """Ids of a gateway's tickets, those in `but` left out."""
        return [i for i, waiting in self.by_id.items() if waiting.ticket.owner == owner and i not in but]

    def enter(
        self, line: ClassLine, ticket: Ticket, account: TenantAccount, service: float, in_place: bool = False
    ) -> Waiting:
        """The ticket waits. Its tenant's rate limits have not counted it yet."""
        waiting = self.by_id[ticket.ticket_id] = line.flows.push(ticket, service, in_place)
        waiting.account = account
        account.came(waiting.tokens)
        tenant = waiting.flow.tenant
        if not tenant.touched:
            line.shed.touch(tenant)
        if self._locality is not None:
            self._locality.came(waiting)
        return waiting

    def take_out(self, line: ClassLine, waiting: Waiting) -> None:
        """The ticket waits no more; its tenant's account is the caller's business."""
        line.flows.take(waiting)
        del self.by_id[waiting.ticket.ticket_id]
        if self._locality is not None:
            self._locality.left(waiting)

    def withdraw(self, ticket_id: str, now_s: float, refund: bool) -> bool:
        """End a ticket that has not run; False when it does not wait (any more)."""
        waiting = self.by_id.get(ticket_id)
        if waiting is None:
            return False
        line = self._lines.of(waiting.ticket.request_class)
        self.take_out(line, waiting)
        line.flows.left(waiting.flow)
        waiting.account.left(waiting.tokens)
        if refund and waiting.paid:
            waiting.account.take(-waiting.tokens, now_s, requests=-1)
        return True

    def expire(self, now_s: float) -> list[tuple[Ticket, Refusal]]:
        """End tickets that waited too long; forget flows that are idle and owe nothing."""
        refusals = []
        for line in self._lines:
            while (waiting := line.flows.arrivals.overdue(now_s)) is not None:
                self.withdraw(waiting.ticket.ticket_id, now_s, refund=True)
                refusals.append((waiting.ticket, self._admission.expired(waiting.ticket, now_s)))
            line.flows.forget_idle(64)
        return refusals

    def make_room(self, line: ClassLine, ticket: Ticket, service: float, now_s: float) -> Refusal | None:
        """None when the ticket may wait, if need be in the place of another; else why not."""
        full = self._lines.full_for(line, ticket, service)
        if full is None:
            return None
        if full.victim is None:
            return self._admission.queue_full(ticket, full.waiting, full.which, now_s)
        victim = full.victim.ticket
        refusal = self._admission.shed(victim, now_s)
        self.withdraw(victim.ticket_id, now_s, refund=True)
        self._shed.append((victim, refusal))
        return None

    def take_shed(self) -> list[tuple[Ticket, Refusal]]:
        """Tickets that had to make room since the last call."""
        shed, self._shed = self._shed, []
        return shed

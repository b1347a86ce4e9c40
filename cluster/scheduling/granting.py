"""From waiting tickets and free slots to leases: which class, which ticket, which replica.

Owns: the round of decisions, and retries that step aside in it. Must not know: how tickets came, limits.
"""

from __future__ import annotations

from itertools import islice

from cluster.scheduling.class_lines import ClassLine, ClassLines
from cluster.scheduling.flows import Waiting
from cluster.scheduling.lease_desk import LeaseDesk
from cluster.scheduling.locality import MOST_PASSES, LocalityChooser
from cluster.scheduling.placement import SessionPlacement
from cluster.scheduling.replica_pools import ReplicaPools, Seat
from cluster.scheduling.types import Lease
from cluster.scheduling.waiting_room import WaitingRoom

SIBLINGS_LOOKED_AT = 33


class Granting:
    """Hands out leases in the order of class, fairness and arrival."""

    def __init__(
        self,
        lines: ClassLines,
        pools: ReplicaPools,
        placement: SessionPlacement,
        locality: LocalityChooser | None,
        waiting: WaitingRoom,
        desk: LeaseDesk,
    ) -> None:
        self._lines = lines
        self._pools = pools
        self._placement = placement
        self._locality = locality
        self._waiting = waiting
        self._desk = desk
        self._aside: set[ClassLine] = set()
        """Lines in which the present or the latest grant has set tickets aside."""

    def grant(self, now_s: float, max_leases: int | None) -> list[Lease]:
        """Every lease that can be had now, at most `max_leases`."""
        lines, free_slots = self._lines, self._pools.free_slots
        ready = lines.raise_urgent(now_s)
        leases: list[Lease] = []
        while ready and (max_leases is None or len(leases) < max_leases):
            for index in lines.order.order(ready):
                lease = self._grant_one(lines.all[index], now_s) if free_slots(index) else None
                if lease is not None:
                    leases.append(lease)
                    if not lines.all[index].flows.ready or lease.ticket.tenant in lines.held:
                        ready = lines.ready_mask()
                    break
            else:
                break
        if not ready:
            lines.order.order(0)  # nobody waits, so nobody earns from what is charged until the next round
        if self._aside:
            self._put_back()
        return leases

    def _grant_one(self, line: ClassLine, now_s: float) -> Lease | None:
        """A lease for the ticket of the class that is next, if one of the free slots is for it."""
        while (choice := self._choose(line, now_s)) is None:
            retry = line.flows.head()
            if retry is None:
                return None
            # What is free has failed this one before: it waits for another replica, but those behind it need not.
            line.flows.set_aside(retry)
            self._aside.add(line)
        waiting, seat = choice
        self._waiting.take_out(line, waiting)
        ticket = waiting.ticket
        if ticket.session is None and not ticket.prefix:
            return self._desk.begin(line, waiting, seat, now_s)
        ahead = self._placement.placed(ticket, seat, now_s)
        lease = self._desk.begin(line, waiting, seat, now_s)
        self._desk.book.running[lease.lease_id].prefill_ahead = ahead
        return lease

    def _choose(self, line: ClassLine, now_s: float) -> tuple[Waiting, Seat] | None:
        """The ticket that is next and a free replica for it."""
        if self._locality is not None:
            return self._locality.choose(line.flows, line.index, now_s)
        head = line.flows.head()
        if head is None:
            return None
        seat = self._placement.choose(head.ticket, line.index, now_s)
        if seat is None:
            return None
        if head.ticket.session is not None and head.flow.waiting > 1:
            head = self._sibling_at_home(head, seat)
        return head, seat

    def _sibling_at_home(self, due: Waiting, seat: Seat) -> Waiting:
        """The ticket that is due; but if its session's replica is full, one of its flow whose session lives on `seat`.

        So a session waits for its replica only while others of its own flow have use for the slot: no slot stays idle,
        and no other flow notices. At most `MOST_PASSES` times.
        """
        if due.passed_over >= MOST_PASSES or not self._placement.home_is_full(due.ticket):
            return due
        tickets = due.flow.tickets
        for deadline, _, _, waiting in islice(tickets, 1, SIBLINGS_LOOKED_AT):
            sibling = waiting.ticket
            if not waiting.waits or deadline != tickets[0][0] or seat.replica_id in sibling.avoid:
                continue
            if self._placement.home_of(sibling) == seat.replica_id:
                due.passed_over += 1
                return waiting
        return due

    def _put_back(self) -> None:
        for line in self._aside:
            line.put_back()
        self._aside = {line for line in self._aside if line.flows.aside}

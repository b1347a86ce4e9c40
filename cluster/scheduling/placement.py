"""Choice of a replica for the next request: its session's replica if that has room, else the least loaded.

A session's turns share a KV cache on the replica that served the last one. Stickiness never makes a request wait:
a full sticky replica is passed over (work waits centrally, not at replicas). A replica whose own class is the ticket's
comes before one that merely lends its idle slots.

Owns: the bounded map session -> replica. Must not know: queues, tenants, engines.
"""

from __future__ import annotations

from collections import OrderedDict

from cluster.scheduling.replica_pools import ReplicaPools, Seat
from cluster.scheduling.types import Ticket


class SessionPlacement:
    """Sticky least-loaded placement that remembers the last `max_sessions` sessions."""

    def __init__(self, pools: ReplicaPools, max_sessions: int = 65_536) -> None:
        self._pools = pools
        self._max_sessions = max_sessions
        self._home: OrderedDict[tuple[str, str], str] = OrderedDict()

    def choose(self, ticket: Ticket, index: int) -> Seat | None:
        """A replica with a free slot for a ticket of the class with that index; None when there is none, or for a retry
        none but those that failed it, while others serve the class."""
        if ticket.avoid:
            return self._least_loaded_avoiding(ticket, index)
        seat = self._pools.least_loaded(index)
        if seat is None or ticket.session is None:
            return seat
        # Per tenant: a neighbour's session name must not steer mine.
        home_id = self._home.get((ticket.tenant, ticket.session))
        home = self._pools.get(home_id) if home_id is not None else None
        if home is None or not home.replica.free or home is seat:
            return seat
        own, lent = self._pools.tiers(index)
        return home if home.pool in (own if seat.pool in own else lent) else seat

    def placed(self, ticket: Ticket, replica_id: str) -> None:
        """The ticket's session has its cache there from now on."""
        if ticket.session is None:
            return
        session = (ticket.tenant, ticket.session)
        self._home[session] = replica_id
        self._home.move_to_end(session)
        if len(self._home) > self._max_sessions:
            self._home.popitem(last=False)

    def forget_replica(self, replica_id: str) -> None:
        for session in [s for s, r in self._home.items() if r == replica_id]:
            del self._home[session]

    def _least_loaded_avoiding(self, ticket: Ticket, index: int) -> Seat | None:
        """For a retry, which is rare: looks at every replica of the class."""
        tiers = self._pools.tiers(index)
        able = [s for tier in tiers for pool in tier for s in pool.seats if not s.replica.draining]
        # A replica that fails is always free: only waiting for the others keeps a retry from it.
        able = [s for s in able if s.replica.replica_id not in ticket.avoid] or able
        free = [s for s in able if s.replica.free > 0]
        if not free:
            return None
        lends = [s.replica.serves[0] is not ticket.request_class for s in free]
        return min(zip(lends, free, strict=True), key=lambda p: (p[0], p[1].replica.load, p[1].replica.replica_id))[1]

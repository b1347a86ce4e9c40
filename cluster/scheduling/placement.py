"""Choice of a replica for the next request: its session's replica if that has room, else the least loaded.

A session's turns share a KV cache on the replica that served the last one. Stickiness never makes a request wait:
a full sticky replica is passed over (work waits centrally, not at replicas).

Owns: the bounded map session -> replica. Must not know: queues, tenants, engines.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from cluster.scheduling.types import Replica, Ticket


class SessionPlacement:
    """Sticky least-loaded placement that remembers the last `max_sessions` sessions."""

    def __init__(self, max_sessions: int = 65_536) -> None:
        self._max_sessions = max_sessions
        self._home: OrderedDict[str, str] = OrderedDict()

    def choose(self, ticket: Ticket, candidates: Iterable[Replica]) -> Replica | None:
        """Pick among `candidates` with a free slot; None when there is none.

        A replica whose own class is the ticket's comes before one that merely lends its idle slots.
        """
        free = [r for r in candidates if r.free > 0]
        if not free:
            return None
        own = [r for r in free if r.serves[0] is ticket.request_class]
        pool = own or free
        home = self._home.get(self._key(ticket)) if ticket.session else None
        chosen = next((r for r in pool if r.replica_id == home), None)
        if chosen is None:
            chosen = min(pool, key=lambda r: (r.load, r.replica_id))
        if ticket.session:
            self._remember(self._key(ticket), chosen.replica_id)
        return chosen

    def forget_replica(self, replica_id: str) -> None:
        for session in [s for s, r in self._home.items() if r == replica_id]:
            del self._home[session]

    @staticmethod
    def _key(ticket: Ticket) -> str:
        # Per tenant: a neighbour's session name must not steer mine.
        return f"{ticket.tenant}\0{ticket.session}"

    def _remember(self, session: str, replica_id: str) -> None:
        self._home[session] = replica_id
        self._home.move_to_end(session)
        if len(self._home) > self._max_sessions:
            self._home.popitem(last=False)

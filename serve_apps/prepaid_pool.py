"""Prepaid leases that a gateway holds: rights to run the next requests, asked for before they came.

The dispatcher hands them out only while nobody waits, so a request that takes one overtakes nobody; it starts without
an actor call. Not every request may: a tenant with limits always asks (limits are exact and global), and so does a
request whose session lives on a replica for which nothing is held, one that some replica has failed before, and one
that is placed by its prefix.

Owns: unused prepaid leases of one gateway, and where the sessions it has seen live.
Must not know: messages, the event loop, who granted what.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from cluster.scheduling import Prepaid, Ticket
from cluster.vocabulary import RequestClass
from serve_apps.messages import PrepaidGrant

MAX_SESSIONS = 65_536


class PrepaidPool:
    """Unused prepaid leases by replica."""

    def __init__(self, max_sessions: int = MAX_SESSIONS) -> None:
        self._max_sessions = max_sessions
        self._by_replica: dict[str, dict[str, PrepaidGrant]] = {}
        self._homes: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._limited: frozenset[str] | None = None

    def __len__(self) -> int:
        return sum(len(held) for held in self._by_replica.values())

    def __bool__(self) -> bool:
        return bool(self._by_replica)

    def held_by(self, owner: str) -> list[Prepaid]:
        """All of them, as the queue knows them."""
        grants = (grant for held in self._by_replica.values() for grant in held.values())
        return [Prepaid(grant.lease_id, grant.replica_id, grant.serves, owner) for grant in grants]

    def set_limited(self, tenants: frozenset[str]) -> None:
        """Tenants that have limits. Before the first word about it everybody may have some."""
        self._limited = tenants

    def add(self, prepaid: Iterable[PrepaidGrant]) -> None:
        for grant in prepaid:
            self._by_replica.setdefault(grant.replica_id, {})[grant.lease_id] = grant

    def recall(self, lease_ids: Iterable[str]) -> list[str]:
        """Give up those that are not in use; returns them. (Use wins: the dispatcher is told of it anyway.)"""
        wanted = set(lease_ids)
        given_up = []
        for replica_id in list(self._by_replica):
            held = self._by_replica[replica_id]
            for lease_id in wanted & held.keys():
                del held[lease_id]
                given_up.append(lease_id)
            if not held:
                del self._by_replica[replica_id]
        return given_up

    def drop_replica(self, replica_id: str) -> list[str]:
        """Give up those on a replica that took no connection; returns them."""
        return list(self._by_replica.pop(replica_id, ()))

    def take(self, ticket: Ticket) -> PrepaidGrant | None:
        """A lease for this ticket at once, or None when the dispatcher is to be asked."""
        if self._limited is None or ticket.tenant in self._limited or ticket.avoid or ticket.prefix:
            return None
        replica_id = self._choose(ticket)
        if replica_id is None:
            return None
        held = self._by_replica[replica_id]
        grant = held.pop(next(iter(held)))
        if not held:
            del self._by_replica[replica_id]
        self.remember(ticket, replica_id)
        return grant

    def remember(self, ticket: Ticket, replica_id: str) -> None:
        """The ticket's session runs there now, whoever chose the replica."""
        if not ticket.session:
            return
        session = (ticket.tenant, ticket.session)
        self._homes[session] = replica_id
        self._homes.move_to_end(session)
        if len(self._homes) > self._max_sessions:
            self._homes.popitem(last=False)

    def _choose(self, ticket: Ticket) -> str | None:
        """The session's home; for a new session the replica with most left, its own class before lent slots."""
        able = {i: self._serves(i) for i in self._by_replica if ticket.request_class in self._serves(i)}
        home = self._homes.get((ticket.tenant, ticket.session)) if ticket.session else None
        if home is not None:
            return home if home in able else None
        own = [i for i, serves in able.items() if serves[0] == ticket.request_class]
        return max(own or able, key=lambda i: len(self._by_replica[i]), default=None)

    def _serves(self, replica_id: str) -> tuple[RequestClass, ...]:
        return next(iter(self._by_replica[replica_id].values())).serves

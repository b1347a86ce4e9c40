"""Prepaid leases that a gateway holds: rights to run the next requests, asked for before they came.

The dispatcher hands them out only while nobody waits, so a request that takes one overtakes nobody; it starts without
an actor call. Not every request may: a tenant with limits always asks (limits are exact and global), and so does a
request whose session lives on a replica for which nothing is held, one that some replica has failed before, and one
of an unknown session that is placed by what its prompt begins with. An unknown session belongs to a replica by the same
hash ring as in the dispatcher (`cluster.scheduling.hash_ring`): so all gateways choose alike.

Owns: unused prepaid leases of one gateway, where the sessions it has seen live, and which replicas there are.
Must not know: messages, the event loop, who granted what.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from cluster.scheduling import HashRing, Prepaid, Ticket, session_key
from cluster.vocabulary import RequestClass
from serve_apps.messages import PrepaidGrant

MAX_SESSIONS = 65_536
ASKED_IN_VAIN = 16
"""A replica for whose sessions the dispatcher was asked this often, and no lease there came: it may be gone."""


class PrepaidPool:
    """Unused prepaid leases by replica."""

    def __init__(self, max_sessions: int = MAX_SESSIONS) -> None:
        self._max_sessions = max_sessions
        self._by_replica: dict[str, dict[str, PrepaidGrant]] = {}
        self._homes: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._limited: frozenset[str] | None = None
        self._ring = HashRing()
        self._serves: dict[str, tuple[RequestClass, ...]] = {}
        """Of the replicas on the ring: those for which leases were given, until they are held to be gone."""
        self._asked: dict[str, int] = {}

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
            self._ring.add(grant.replica_id)
            self._serves[grant.replica_id] = grant.serves
            self._asked.pop(grant.replica_id, None)
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
        self._forget(replica_id)
        return list(self._by_replica.pop(replica_id, ()))

    def take(self, ticket: Ticket) -> PrepaidGrant | None:
        """A lease for this ticket at once, or None when the dispatcher is to be asked."""
        if self._limited is None or ticket.tenant in self._limited or ticket.avoid:
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
        """A replica for which something is held; None where the right one is not among these, or not known here."""
        if ticket.session is None:
            return None if ticket.prefix else self._with_most_left(ticket)
        home = self._homes.get((ticket.tenant, ticket.session))
        if home is None:
            if ticket.prefix:
                return None  # the dispatcher knows what prompts replicas were given
            home = self._belongs_to(ticket.tenant, ticket.session, ticket.request_class)
        held = self._by_replica.get(home) if home is not None else None
        if held is not None and ticket.request_class in next(iter(held.values())).serves:
            return home
        if held is None and home is not None and home in self._serves:
            self._asked[home] = self._asked.get(home, 0) + 1
            if self._asked[home] >= ASKED_IN_VAIN:
                self._forget(home)
        return None

    def _with_most_left(self, ticket: Ticket) -> str | None:
        """Its own class before lent slots."""
        able = [i for i in self._by_replica if ticket.request_class in self._serves[i]]
        own = [i for i in able if self._serves[i][0] == ticket.request_class]
        return max(own or able, key=lambda i: len(self._by_replica[i]), default=None)

    def _belongs_to(self, tenant: str, session: str, request_class: RequestClass) -> str | None:
        """The replica of a session that nobody here remembers: one whose own class it is, else one that lends."""
        has_own = any(serves[0] == request_class for serves in self._serves.values())
        for replica_id in self._ring.walk(session_key(tenant, session)):
            serves = self._serves[replica_id]
            if serves[0] == request_class or (not has_own and request_class in serves):
                return replica_id
        return None

    def _forget(self, replica_id: str) -> None:
        self._ring.remove(replica_id)
        self._serves.pop(replica_id, None)
        self._asked.pop(replica_id, None)

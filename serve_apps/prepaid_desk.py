"""Prepaid leases as the dispatcher sees them: how many each gateway should hold, and which ones it has.

Sizing, at each tick: a gateway wants what it starts in `PREPAY_S` at its recent rate, and one more; nothing when it has
been idle for a while. It gets them on replicas that serve a class of which it has started something lately. All
gateways together get what is free there less a reserve (a quarter of the slots, at least one), in proportion to their
wishes: the reserve serves another gateway, or a request that may not use a prepaid lease, while others are recalled.

Contention: as soon as a ticket waits, every unused lease that could serve its class is recalled, and the gateway gets
none before the next tick. The recall is answered by `returned`; whoever used the lease in the meantime keeps it.

Owns: the account per gateway. Must not know: messages, Ray. The slots themselves are the queue's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from cluster.scheduling import Lease, Prepaid, RequestQueue, Ticket
from cluster.scheduling.rates import RateMeter
from cluster.vocabulary import RequestClass

PREPAY_S = 0.1
DEMAND_TAU_S = 1.0
IDLE_S = 5.0
RESERVED_SHARE = 0.25

Classes = frozenset[RequestClass]
Recalls = dict[str, list[str]]
"""Gateway -> prepaid leases to give back if they are not in use."""


@dataclass(slots=True)
class _Account:
    """One gateway's prepaid leases, its recent demand, and how many it should hold."""

    live: dict[str, Prepaid] = field(default_factory=dict)
    recalled: dict[str, Prepaid] = field(default_factory=dict)
    demand: RateMeter = field(default_factory=lambda: RateMeter(DEMAND_TAU_S))
    started_at_s: dict[RequestClass, float] = field(default_factory=dict)
    target: int = 0

    def classes(self, now_s: float) -> Classes:
        """What it has started something of lately: a slot for anything else would be of no use to it."""
        return frozenset(c for c, started_at_s in self.started_at_s.items() if now_s - started_at_s <= IDLE_S)

    def wish(self, now_s: float) -> int:
        if not self.classes(now_s):
            return 0
        return math.ceil(self.demand.rate(now_s) * PREPAY_S) + 1

    def recall(self, lease_ids: Iterable[str]) -> list[str]:
        newly = list(lease_ids)
        for lease_id in newly:
            self.recalled[lease_id] = self.live.pop(lease_id)
        return newly

    def ended(self, lease_id: str) -> bool:
        """Not unused any more; False when it was not unused before either."""
        return (self.live.pop(lease_id, None) or self.recalled.pop(lease_id, None)) is not None


class PrepaidDesk:
    """Hands out, counts and recalls the prepaid leases of one model."""

    def __init__(self, queue: RequestQueue) -> None:
        self._queue = queue
        self._accounts: dict[str, _Account] = {}

    def held(self) -> dict[str, int]:
        """Unused prepaid leases by gateway, as far as it is known here."""
        return {owner: len(a.live) + len(a.recalled) for owner, a in self._accounts.items()}

    def per_replica(self) -> Counter[str]:
        """Unused ones by replica."""
        held = (p for a in self._accounts.values() for p in (*a.live.values(), *a.recalled.values()))
        return Counter(prepaid.replica_id for prepaid in held)

    def replica_ids(self) -> set[str]:
        """Where there are any."""
        return {p.replica_id for account in self._accounts.values() for p in account.live.values()}

    def started(self, owner: str, classes: Collection[RequestClass], now_s: float) -> None:
        """The gateway has started requests of these classes (one for each), in whatever way."""
        account = self._account(owner)
        account.demand.add(len(classes), now_s)
        for request_class in classes:
            account.started_at_s[request_class] = now_s

    def use(self, owner: str, lease_id: str, ticket: Ticket, granted_at_s: float, now_s: float) -> bool:
        """The gateway runs a request on it, recalled or not. False when its replica has gone in the meantime."""
        was_unused = self._account(owner).ended(lease_id)
        lease = self._queue.use_prepaid(lease_id, ticket, granted_at_s, now_s)
        # One that is not known here is told twice: a hello has listed it before.
        return lease is not None or not was_unused

    def give_back(self, owner: str, lease_ids: Iterable[str], now_s: float) -> None:
        for lease_id in lease_ids:
            self._account(owner).ended(lease_id)
            self._queue.return_prepaid(lease_id, now_s)

    def reconcile(self, owner: str, running: Iterable[Lease], prepaid: Iterable[Prepaid], now_s: float) -> None:
        """A hello: what runs has been used, although it may not have been told. The queue does the rest."""
        account = self._account(owner)
        for lease in running:
            if lease.lease_id in account.live or lease.lease_id in account.recalled:
                self.use(owner, lease.lease_id, lease.ticket, lease.granted_at_s, now_s)
        # A recall may not have arrived: all of them may be called back again.
        account.live, account.recalled, account.target = {p.lease_id: p for p in prepaid}, {}, 0

    def close(self, owner: str) -> None:
        """The gateway is gone, and the queue has ended all that it had."""
        self._accounts.pop(owner, None)

    def refill(self, owner: str, now_s: float) -> list[Prepaid]:
        """What the gateway lacks, if there is something to spare and nobody waits."""
        account = self._account(owner)
        missing = account.target - len(account.live)
        if missing <= 0:
            return []
        classes = account.classes(now_s)
        count = min(missing, self._spare(classes))
        prepaid = self._queue.prepay(owner, now_s, count, classes) if count > 0 else []
        account.live.update((p.lease_id, p) for p in prepaid)
        return prepaid

    def retarget(self, now_s: float) -> Recalls:
        """Set every gateway's number anew; returns what those that hold too many are to give back."""
        shares = self._shares(now_s)
        recalls: Recalls = {}
        for owner, account in self._accounts.items():
            classes = account.classes(now_s)
            account.target = math.floor(account.wish(now_s) * shares[classes])
            useless = [lease_id for lease_id, prepaid in account.live.items() if classes.isdisjoint(prepaid.serves)]
            useful = [lease_id for lease_id, prepaid in account.live.items() if not classes.isdisjoint(prepaid.serves)]
            # The newest: the oldest are the next to be used.
            if excess := useless + useful[account.target :]:
                recalls[owner] = account.recall(excess)
        return recalls

    def recall_for_waiting(self) -> Recalls:
        """All that could serve a class in which somebody waits."""
        waiting = self._queue.contended()
        return self._recall(lambda prepaid: not waiting.isdisjoint(prepaid.serves)) if waiting else {}

    def recall_again(self) -> Recalls:
        """What has not been answered: the recall may have overtaken the lease on its way."""
        return {owner: list(account.recalled) for owner, account in self._accounts.items() if account.recalled}

    def recall_from(self, *replica_ids: str) -> Recalls:
        """All on replicas that take no more requests."""
        return self._recall(lambda prepaid: prepaid.replica_id in replica_ids) if replica_ids else {}

    def _recall(self, wanted: Callable[[Prepaid], bool]) -> Recalls:
        recalls = {}
        for owner, account in self._accounts.items():
            if found := [lease_id for lease_id, prepaid in account.live.items() if wanted(prepaid)]:
                recalls[owner] = account.recall(found)
                account.target = 0
        return recalls

    def _account(self, owner: str) -> _Account:
        account = self._accounts.get(owner)
        if account is None:
            account = self._accounts[owner] = _Account()
        return account

    def _shares(self, now_s: float) -> dict[Classes, float]:
        """What part of its wish a gateway can have, by the classes that it starts: those that could use the same
        replicas share them."""
        wishes: Counter[Classes] = Counter()
        for account in self._accounts.values():
            wishes[account.classes(now_s)] += account.wish(now_s)
        ids = {classes: self._usable(classes) for classes in wishes}
        live = Counter(p.replica_id for account in self._accounts.values() for p in account.live.values())
        shares = {}
        for classes, mine in ids.items():
            wished = sum(wish for others, wish in wishes.items() if not mine.isdisjoint(ids[others]))
            available = self._spare(classes) + sum(live[replica_id] for replica_id in mine)
            shares[classes] = min(1.0, max(0, available) / wished) if wished else 0.0
        return shares

    def _usable(self, classes: Classes) -> set[str]:
        """Replicas for some of `classes`, for which nobody waits."""
        waiting = self._queue.contended()
        return {
            replica.replica_id
            for replica in self._queue.replicas()
            if not replica.draining and not classes.isdisjoint(replica.serves) and waiting.isdisjoint(replica.serves)
        }

    def _spare(self, classes: Classes) -> int:
        """Free slots there beyond the reserve."""
        free, slots = self._queue.room(classes)
        return free - max(1, math.ceil(RESERVED_SHARE * slots))

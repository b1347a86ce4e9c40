"""Which replica is free: replicas with the same classes and slots form a pool, in buckets by how many slots are taken.

The least loaded one is in the lowest bucket that is not empty; taking a slot moves a replica one bucket up, giving it
back one down. Both are O(1), whatever the number of replicas.

Owns: slots taken per replica, and the order by load. Must not know: tickets, tenants, sessions.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from cluster.scheduling.class_order import INDEX, PRIORITY, class_mask
from cluster.scheduling.types import Replica
from cluster.vocabulary import RequestClass


class Seat:
    """A replica in its pool."""

    __slots__ = ("mask", "pool", "replica", "replica_id")

    def __init__(self, replica: Replica, pool: ReplicaPool) -> None:
        self.replica = replica
        self.replica_id = replica.replica_id
        self.pool = pool
        self.mask = pool.mask

    def take(self) -> None:
        """One slot more is taken: by a grant, or by a lease of a former queue, for which there may be no room."""
        replica = self.replica
        running = replica.running
        replica.running = running + 1
        pool = self.pool
        if running < pool.slots and not replica.draining:
            pool.free_slots -= 1
            del pool.buckets[running][self]
            pool.buckets[running + 1][self] = None

    def give_back(self) -> None:
        """A slot is free again."""
        replica = self.replica
        running = replica.running = replica.running - 1
        pool = self.pool
        if running < pool.slots and not replica.draining:
            pool.free_slots += 1
            pool.buckets[running + 1].pop(self, None)
            pool.buckets[running][self] = None
            if running < pool.lowest:
                pool.lowest = running


class ReplicaPool:
    """Replicas that serve the same classes with the same number of slots. Bucket i holds those with i slots taken and
    at least one free; those that drain are in none, and the last bucket, of full ones, is never looked at."""

    def __init__(self, serves: tuple[RequestClass, ...], slots: int) -> None:
        self.mask = class_mask(serves)
        self.slots = slots
        self.buckets: list[dict[Seat, None]] = [{} for _ in range(slots + 1)]
        self.lowest = slots
        """No bucket below this one holds a replica."""
        self.free_slots = 0
        self.all_slots = 0
        """Of those that do not drain."""
        self.seats: set[Seat] = set()

    @property
    def replicas(self) -> int:
        """Those that do not drain."""
        return self.all_slots // self.slots

    def head(self) -> Seat | None:
        """A least loaded replica with a free slot: of several the one that has been so loaded for longest."""
        if not self.free_slots:
            return None
        buckets = self.buckets
        lowest = self.lowest
        while not buckets[lowest]:
            lowest += 1
        self.lowest = lowest
        return next(iter(buckets[lowest]))

    def free(self, limit: int) -> Iterator[Seat]:
        """Up to `limit` replicas with a free slot, the least loaded first."""
        return islice((seat for bucket in self.buckets[self.lowest : self.slots] for seat in bucket), limit)

    def add(self, seat: Seat) -> None:
        self.seats.add(seat)
        if not seat.replica.draining:
            self.all_slots += self.slots
        running = seat.replica.running
        if running < self.slots and not seat.replica.draining:
            self.free_slots += self.slots - running
            self.buckets[running][seat] = None
            self.lowest = min(self.lowest, running)

    def drop(self, seat: Seat) -> None:
        self.seats.discard(seat)
        if not seat.replica.draining:
            self.all_slots -= self.slots
            taken = min(seat.replica.running, self.slots)
            self.free_slots -= self.slots - taken
            self.buckets[taken].pop(seat, None)  # a full one may be in none


class ReplicaPools:
    """All replicas of a queue. For a class its own pools (whose first class it is) come before those that lend.

    Classes are given by their index in `class_order.PRIORITY`."""

    def __init__(self) -> None:
        self._pools: dict[tuple[tuple[RequestClass, ...], int], ReplicaPool] = {}
        self._seats: dict[str, Seat] = {}
        self._own: list[list[ReplicaPool]] = [[] for _ in PRIORITY]
        self._lent: list[list[ReplicaPool]] = [[] for _ in PRIORITY]

    def get(self, replica_id: str) -> Seat | None:
        return self._seats.get(replica_id)

    def replicas(self) -> list[Replica]:
        return [seat.replica for seat in self._seats.values()]

    def put(self, replica: Replica, running: int) -> None:
        """Add a replica on which `running` slots are taken, or update one: then what is taken stays."""
        old = self.remove(replica.replica_id)
        replica.running = running if old is None else old.replica.running
        pool = self._pools.get((replica.serves, replica.max_running))
        if pool is None:
            pool = ReplicaPool(replica.serves, replica.max_running)
            self._pools[replica.serves, replica.max_running] = pool
            self._own[INDEX[replica.serves[0]]].append(pool)
            for request_class in replica.serves[1:]:
                self._lent[INDEX[request_class]].append(pool)
        seat = self._seats[replica.replica_id] = Seat(replica, pool)
        pool.add(seat)

    def remove(self, replica_id: str) -> Seat | None:
        seat = self._seats.pop(replica_id, None)
        if seat is not None:
            seat.pool.drop(seat)
        return seat

    def free_slots(self, index: int) -> int:
        """Free slots that the class may use."""
        slots = 0
        for pool in self._own[index]:
            slots += pool.free_slots
        for pool in self._lent[index]:
            slots += pool.free_slots
        return slots

    def least_loaded(self, index: int) -> Seat | None:
        own = self._own[index]
        seat = own[0].head() if len(own) == 1 else _best(own)
        return seat or _best(self._lent[index])

    def tiers(self, index: int) -> tuple[list[ReplicaPool], list[ReplicaPool]]:
        """The class's own pools, then those that lend it idle slots."""
        return self._own[index], self._lent[index]

    def sharing(self, index: int) -> int:
        """Classes (bits) that could take a free slot of the class from it, itself among them."""
        mask = 1 << index
        for pool in (*self._own[index], *self._lent[index]):
            if pool.free_slots:
                mask |= pool.mask
        return mask

    def room(self, classes: int, without: int) -> tuple[int, int]:
        """Free slots, and all slots, of the replicas that serve any of `classes` (bits) and none of `without`; of those
        that drain, none."""
        pools = [pool for pool in self._pools.values() if pool.mask & classes and not pool.mask & without]
        return sum(pool.free_slots for pool in pools), sum(pool.all_slots for pool in pools)

    def least_loaded_for(self, classes: int, without: int) -> Seat | None:
        """The least loaded replica that serves any of `classes` (bits) and none of `without`."""
        return _best([pool for pool in self._pools.values() if pool.mask & classes and not pool.mask & without])


def _best(pools: list[ReplicaPool]) -> Seat | None:
    best: Seat | None = None
    best_load = 0.0
    for pool in pools:
        seat = pool.head()
        if seat is None:
            continue
        load = seat.replica.running / pool.slots
        if best is None or load < best_load:
            best, best_load = seat, load
    return best

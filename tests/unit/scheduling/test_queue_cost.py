"""O(log n) per decision, shown by counting calls: with 30 times the tenants, tickets and replicas a decision takes less
than twice as many. A policy that looked at each of them would take 30 times as many."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cluster.scheduling import ClassPolicy, QueuePolicy, Replica, RequestQueue, Ticket, TokenUsage
from cluster.vocabulary import RequestClass

SMALL, LARGE = 100, 3000
MOST_GROWTH = 2.0


class Calls:
    count = 0


@contextmanager
def counted() -> Iterator[Calls]:
    """Counts calls of functions and of built-ins such as heap operations."""
    calls = Calls()

    def note(frame: object, event: str, argument: object) -> None:
        calls.count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(before)


class Load:
    """A queue with `size` tenants and replicas, and three times as many tickets waiting."""

    def __init__(self, size: int, slots: int, bound: int | None = None, avoid: tuple[str, ...] = ()) -> None:
        self.avoid = avoid
        self.rng = random.Random(size)
        self.size = size
        self.number = 0
        classes = {c: ClassPolicy(10**6, 10**6, floor=0.1 if c != RequestClass.ONLINE else 0) for c in RequestClass}
        self.queue = RequestQueue(classes, policy=QueuePolicy(max_queued=bound))
        for n in range(size):
            self.queue.put_replica(Replica(f"r{n}", "d", tuple(RequestClass), slots), 0.0)
        for _ in range(3 * size):
            self.submit()

    def submit(self) -> None:
        self.number += 1
        name = f"t{self.number}"
        tenant = f"tenant{self.rng.randrange(self.size)}"
        request_class = self.rng.choice(list(RequestClass))
        self.queue.submit(Ticket(name, "g", tenant, request_class, 10, 20, self.number * 1e-3, avoid=self.avoid), 1.0)


def cost(decisions: Callable[[Load], int], load: Load) -> float:
    with counted() as calls:
        number = decisions(load)
    return calls.count / number


def test_grant_and_release() -> None:
    def decisions(load: Load) -> int:
        for _ in range(4):
            for lease in load.queue.grant(2.0, 50):
                load.queue.release(lease.lease_id, TokenUsage(10, 0, load.rng.randrange(40)), 2.0)
        return 200

    assert cost(decisions, Load(LARGE, 1)) <= MOST_GROWTH * cost(decisions, Load(SMALL, 1))


def test_submit_and_cancel() -> None:
    def decisions(load: Load) -> int:
        for _ in range(200):
            load.submit()
            load.queue.cancel(f"t{load.number - load.rng.randrange(3 * load.size)}", 2.0)
        return 400

    assert cost(decisions, Load(LARGE, 1)) <= MOST_GROWTH * cost(decisions, Load(SMALL, 1))


def test_tickets_that_avoid_a_replica() -> None:
    """All tickets of a gateway do while its breaker for that replica is open; and one that fails is always free."""

    def decisions(load: Load) -> int:
        for _ in range(200):
            for lease in load.queue.grant(2.0, 1):
                assert lease.replica_id != "r0"
                load.queue.release(lease.lease_id, TokenUsage(10, 0, 5), 2.0)
        return 200

    costs = [cost(decisions, Load(size, 1, avoid=("r0",))) for size in (LARGE, SMALL)]
    assert costs[0] <= MOST_GROWTH * costs[1]


@pytest.mark.parametrize("times", [10])
def test_refusing_and_shedding_under_overload(times: int) -> None:
    """`times` the load that fits: every newcomer is refused or takes somebody's place."""

    def decisions(load: Load) -> int:
        for _ in range(20 * times):
            load.submit()
        return 20 * times

    costs = []
    for size in (SMALL, LARGE):
        load = Load(size, 1, bound=2 * size)  # of the 3 * size tickets a third did not fit any more
        assert sum(load.queue.waiting(c) for c in RequestClass) == 2 * size
        assert load.queue.take_shed()
        costs.append(cost(decisions, load))
    assert costs[1] <= MOST_GROWTH * costs[0]

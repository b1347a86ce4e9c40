"""Between classes: floors, ageing and deadlines; what is raised never takes more than its share from online."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduling import ClassPolicy, QueuePolicy, Replica, RequestQueue, Ticket, TokenUsage
from cluster.scheduling.class_order import CREDIT_CHARGES, NORMAL, ClassOrder
from cluster.vocabulary import RequestClass
from tests.unit.scheduling.simulator import Simulation

ONLINE, SEMI, OFFLINE = RequestClass
UNBOUNDED = 10**6
RAISED_SHARE = 0.2


def classes(max_age_s: float | None, floor: float = 0.0) -> dict[RequestClass, ClassPolicy]:
    return {
        ONLINE: ClassPolicy(UNBOUNDED, UNBOUNDED),
        SEMI: ClassPolicy(UNBOUNDED, UNBOUNDED, floor, max_age_s),
        OFFLINE: ClassPolicy(UNBOUNDED, UNBOUNDED, 0.0, max_age_s),
    }


def loaded(max_age_s: float | None, steps: int, floor: float = 0.0, **fields: float) -> Simulation:
    """All three classes backlogged; `fields` go to the offline tickets."""
    rng = random.Random(3)
    policy = QueuePolicy(raised_share=RAISED_SHARE, deadline_margin_s=5.0)
    sim = Simulation(8, (ONLINE, SEMI, OFFLINE), policy=policy, classes=classes(max_age_s, floor))
    for _ in range(steps):
        sim.keep_backlogged("t", ONLINE, rng, (40, 40))
        sim.keep_backlogged("t", SEMI, rng, (40, 40))
        sim.keep_backlogged("t", OFFLINE, rng, (40, 40), shared_backlog=True, **fields)
        sim.step()
    return sim


def share(sim: Simulation, *of: RequestClass) -> float:
    return sum(sim.service["t", c] for c in of) / sum(sim.service.values())


def test_an_aged_class_goes_first_but_takes_no_more_than_the_raised_share() -> None:
    """Semi-online and offline are overloaded and aged all the time; online keeps all but the configured share."""
    aged = loaded(max_age_s=1.0, steps=6000)
    assert share(aged, SEMI, OFFLINE) == pytest.approx(RAISED_SHARE, abs=0.02)
    assert share(loaded(max_age_s=None, steps=2000), SEMI, OFFLINE) == 0.0


def test_floor_and_raised_share_add_up() -> None:
    sim = loaded(max_age_s=1.0, steps=6000, floor=0.1)
    assert share(sim, SEMI, OFFLINE) == pytest.approx(0.1 + RAISED_SHARE, abs=0.03)


def test_a_near_deadline_raises_its_class_and_a_far_one_does_not() -> None:
    assert share(loaded(None, 4000, deadline_at_s=1.0), OFFLINE) == pytest.approx(RAISED_SHARE, abs=0.02)
    assert share(loaded(None, 2000, deadline_at_s=10_000.0), OFFLINE) == 0.0


def test_after_a_long_quiet_time_no_class_has_a_claim_on_the_past() -> None:
    """Offline had everything for long, beside nobody: it neither owes nor has earned anything when online comes."""
    sim = Simulation(8, (ONLINE, OFFLINE), classes=classes(None) | {OFFLINE: ClassPolicy(UNBOUNDED, UNBOUNDED, 0.1)})
    rng = random.Random(4)
    for _ in range(3000):
        sim.keep_backlogged("t", OFFLINE, rng, (40, 40))
        sim.step()
    before = sim.service["t", OFFLINE]
    for _ in range(1500):
        for request_class in (ONLINE, OFFLINE):
            sim.keep_backlogged("t", request_class, rng, (40, 40))
        sim.step()
    got = sim.service["t", OFFLINE] - before
    assert got / (got + sim.service["t", ONLINE]) == pytest.approx(0.1, abs=0.03)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(0, 7), st.integers(0, 7)), min_size=5, max_size=300),
    st.sampled_from([0.0, 0.05, 0.2]),
    st.sampled_from([0.0, 0.1, 0.3]),
)
def test_less_important_classes_never_get_more_than_floors_and_raised_share(
    steps: list[tuple[int, int, int]], floor: float, raised_share: float
) -> None:
    """However ready and raised come and go: while online waits, over any stretch from the start."""
    order = ClassOrder({SEMI: floor, OFFLINE: floor}, raised_share)
    others = total = 0.0
    for service, ready, raised in steps:
        ready |= 1  # online waits all the time
        order.raise_classes(raised & ready)
        index = order.order(ready)[0]
        order.served(index, 7, float(service), order.way(index, 7))
        total += service
        others += service if index else 0
        bound = (2 * floor + raised_share) * total + 3 * (CREDIT_CHARGES + 1) * 100
        assert others <= bound


def test_corrections_go_to_the_account_that_was_used() -> None:
    """What a floor was charged too much at first is given back to it: its share is one of real service."""
    order = ClassOrder({SEMI: 0.25})
    got = {0: 0.0, 1: 0.0}
    for _ in range(2000):
        index = order.order(0b011)[0]
        way = order.way(index, 7)
        for service in (100.0, -90.0) if index else (10.0,):
            order.served(index, 7, service, way)
        got[index] += 10.0
    assert got[1] / (got[0] + got[1]) == pytest.approx(0.25, abs=0.02)


def test_a_class_that_has_replicas_of_its_own_owes_nothing_for_them() -> None:
    order = ClassOrder({SEMI: 0.1}, 0.1)
    order.raise_classes(0b010)
    order.order(0b011)
    order.served(0, 0b111, 100.0, NORMAL)
    assert order.order(0b011) == (1, 0)
    assert order.way(1, 0b010) == NORMAL, "online cannot use that replica"
    assert order.way(1, 0b011) != NORMAL


def test_shares_that_leave_nothing_for_online_are_refused() -> None:
    with pytest.raises(ValueError, match="lower them"):
        ClassOrder({SEMI: 0.5, OFFLINE: 0.3}, 0.2)


def test_an_old_request_of_an_idle_class_is_next() -> None:
    queue = RequestQueue(classes(max_age_s=10.0), policy=QueuePolicy(raised_share=RAISED_SHARE))
    queue.put_replica(Replica("r", "d", (ONLINE, SEMI, OFFLINE), 1), 0.0)
    queue.submit(Ticket("old", "g", "t", OFFLINE, 10, 10, 0.0), 0.0)
    for number in range(50):
        queue.submit(Ticket(f"o{number}", "g", "t", ONLINE, 10, 10, 0.0), 0.0)
    for now_s in range(5):
        (lease,) = queue.grant(float(now_s))
        assert lease.ticket.request_class is ONLINE
        queue.release(lease.lease_id, TokenUsage(10, 0, 10), now_s + 0.5)
    assert [lease.ticket.ticket_id for lease in queue.grant(11.0)] == ["o5"], "nothing was earned before it was raised"
    queue.release(queue.leases()[0].lease_id, TokenUsage(10, 0, 10), 11.5)
    assert [lease.ticket.ticket_id for lease in queue.grant(12.0)] == ["old"]


def test_a_deadline_raises_offline_work_only() -> None:
    """Any client may send one with a request: it must not move all of its class."""
    for request_class, urgent in ((SEMI, False), (OFFLINE, True)):
        queue = RequestQueue(classes(None), policy=QueuePolicy(raised_share=RAISED_SHARE))
        queue.submit(Ticket("t", "g", "t", request_class, 10, 10, 0.0, deadline_at_s=1.0), 0.0)
        assert queue._lines.of(request_class).is_urgent(0.0, 60.0) is urgent


def test_nothing_is_earned_once_nobody_waits() -> None:
    queue = RequestQueue(classes(None, floor=0.1))
    queue.put_replica(Replica("r", "d", (ONLINE, SEMI, OFFLINE), 1), 0.0)
    queue.submit(Ticket("runs", "g", "t", ONLINE, 10, 10, 0.0), 0.0)
    (lease,) = queue.grant(0.0)
    for request_class in (ONLINE, SEMI):
        queue.submit(Ticket(request_class.value, "g", "t", request_class, 10, 10, 0.0), 0.0)
    assert queue.grant(0.0) == []
    for request_class in (ONLINE, SEMI):
        queue.cancel(request_class.value, 1.0)
    assert queue.grant(1.0) == []
    queue.release(lease.lease_id, TokenUsage(10, 0, 1000), 2.0)
    assert queue._lines.order._credit == [0.0, 0.0, 0.0]

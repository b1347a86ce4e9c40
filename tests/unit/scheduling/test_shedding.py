"""Overload: who has to go, and that deciding it is cheap."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduling import ClassPolicy, QueuePolicy, Refusal, RequestQueue, TenantPolicy, Ticket
from cluster.scheduling.flow_queue import FlowQueue
from cluster.scheduling.flow_tree import charge
from cluster.scheduling.flows import Waiting
from cluster.scheduling.shedding import ShedOrder
from cluster.vocabulary import RequestClass

ONLINE, SEMI, OFFLINE = RequestClass


def ticket(number: int, tenant: str = "a", request_class: RequestClass = ONLINE, **fields: object) -> Ticket:
    return Ticket(f"t{number}", "g", tenant, request_class, 10, 20, float(number), **fields)  # type: ignore[arg-type]


def make_queue(per_class: int = 100, total: int | None = None) -> RequestQueue:
    classes = {c: ClassPolicy(per_class, 1000.0) for c in RequestClass}
    return RequestQueue(classes, policy=QueuePolicy(max_queued=total))


def shed_ids(queue: RequestQueue) -> list[str]:
    shed = queue.take_shed()
    assert all((r.status, r.code, r.ticket_id) == (503, "shed", t.ticket_id) for t, r in shed)
    assert all(r.retry_after_s is not None and r.retry_after_s >= 1 for _, r in shed)
    return [t.ticket_id for t, _ in shed]


def refused(refusal: Refusal | None) -> bool:
    assert refusal is None or (refusal.status, refusal.code) == (429, "queue_full")
    return refusal is not None


def test_the_newest_ticket_of_the_tenant_furthest_above_its_share_makes_room() -> None:
    queue = make_queue(per_class=5)
    for number in range(5):
        queue.submit(ticket(number, "hog" if number else "small"), 5.0)
    assert not refused(queue.submit(ticket(10, "newcomer"), 10.0))
    assert shed_ids(queue) == ["t4"]
    assert queue.waiting(ONLINE) == 5
    assert refused(queue.submit(ticket(11, "hog"), 11.0)), "the worst tenant's own newcomer is itself the newest"
    assert shed_ids(queue) == []


def test_weights_count_in_what_is_above_a_share() -> None:
    queue = make_queue(per_class=6)
    queue.set_tenant("heavy", TenantPolicy(weight=4), 0.0)
    for number in range(6):
        queue.submit(ticket(number, "heavy" if number < 4 else "light"), 5.0)
    assert not refused(queue.submit(ticket(10, "heavy"), 10.0)), "4 for a weight of 4 is less than 2 for a weight of 1"
    assert shed_ids(queue) == ["t5"]


def test_the_least_important_class_goes_first() -> None:
    queue = make_queue(total=6)
    for number, request_class in enumerate((ONLINE, ONLINE, SEMI, SEMI, OFFLINE, OFFLINE)):
        queue.submit(ticket(number, "a", request_class), 5.0)
    for number, gone in ((10, "t5"), (11, "t4"), (12, "t3"), (13, "t2")):
        assert not refused(queue.submit(ticket(number, "a", ONLINE), 10.0))
        assert shed_ids(queue) == [gone]
    assert refused(queue.submit(ticket(14, "a", ONLINE), 10.0))
    assert refused(queue.submit(ticket(15, "b", OFFLINE), 10.0)), "less important than all that waits"
    assert shed_ids(queue) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**16), st.integers(2, 8), st.lists(st.integers(0, 9), min_size=10, max_size=150))
def test_the_worst_tenant_is_found_whatever_happened_before(seed: int, tenants: int, actions: list[int]) -> None:
    """The lazy heap agrees with looking at everybody."""
    rng = random.Random(seed)
    queue = FlowQueue({f"a{n}": rng.choice([0.5, 1.0, 3.0]) for n in range(tenants)}, set())
    order = ShedOrder(queue)
    waiting: list[Waiting] = []
    for number, action in enumerate(actions):
        if action < 5 or not waiting:
            one = queue.push(ticket(number, f"a{rng.randrange(tenants)}"), float(rng.randint(1, 100)))
            waiting.append(one)
            order.touch(one.flow.tenant)
        elif action < 8:
            queue.take(waiting.pop(rng.randrange(len(waiting))))
        else:
            flow = rng.choice(waiting).flow
            charge(flow, rng.choice([-20.0, 50.0]))
            order.touch(flow.tenant)
        worst = order.worst()
        nodes = [node for node in queue.root.children.values() if node.waiting]
        assert (worst is None) == (not nodes)
        if worst is not None:
            assert worst.pressure == max(node.pressure for node in nodes)  # type: ignore[attr-defined]
            newest = order.newest()
            mine = [w for w in waiting if w.flow.tenant is worst]
            assert newest is max(mine, key=lambda w: (w.ticket.arrived_at_s, w.number))

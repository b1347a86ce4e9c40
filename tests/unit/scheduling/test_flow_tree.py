"""Hierarchical fairness: shares at every level, identities that gain nothing, order inside a flow, bounded memory."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduling import (
    ClassPolicy,
    OutputPredictor,
    Replica,
    RequestQueue,
    TenantLimits,
    TenantPolicy,
    Ticket,
    TokenUsage,
)
from cluster.scheduling.flow_queue import KEPT_IDLE, FlowQueue
from cluster.scheduling.flow_tree import charge
from cluster.scheduling.flows import Waiting
from cluster.vocabulary import RequestClass
from tests.unit.scheduling.simulator import Simulation

ONLINE = RequestClass.ONLINE


def ticket(number: int, tenant: str = "a", at_s: float = 0.0, **fields: object) -> Ticket:
    return Ticket(f"t{number}", "g", tenant, ONLINE, 10, 20, at_s, **fields)  # type: ignore[arg-type]


def serve(queue: FlowQueue, service: float = 10.0) -> Ticket:
    """Take the next ticket and charge its flow."""
    waiting = queue.head()
    assert waiting is not None
    queue.take(waiting)
    charge(waiting.flow, service)
    return waiting.ticket


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    slots=st.integers(1, 8),
    sizes_a=st.tuples(st.integers(1, 200), st.integers(1, 80)),
    sizes_b=st.tuples(st.integers(1, 200), st.integers(1, 80)),
    level=st.sampled_from(["key", "program"]),
)
def test_keys_and_programs_stay_within_the_vtc_bound(
    seed: int, slots: int, sizes_a: tuple[int, int], sizes_b: tuple[int, int], level: str
) -> None:
    """Theorem 4.4 among the keys of a tenant and among the programs of a key, while another tenant competes."""
    rng = random.Random(seed)
    sim = Simulation(slots, (ONLINE,))
    names: list[dict[str, Any]] = [{"key": n} if level == "key" else {"key": "k", "program": n} for n in ("x", "y")]
    longest = [max(pair) for pair in zip(sizes_a, sizes_b, strict=True)]
    bound = 2 * max(longest[0], 2 * slots * sum(longest))
    for _ in range(500):
        sim.keep_backlogged("one", ONLINE, rng, sizes_a, **names[0])
        sim.keep_backlogged("one", ONLINE, rng, sizes_b, **names[1])
        sim.keep_backlogged("two", ONLINE, rng, (50, 50))
        sim.step()
        x, y = (sim.flow_service["one", n.get("key", ""), n.get("program")] for n in names)
        assert abs(x - y) <= bound


@pytest.mark.parametrize("slots", [2, 16])
def test_shares_follow_weights_within_three_percent(slots: int) -> None:
    rng = random.Random(5)
    sim = Simulation(slots, (ONLINE,))
    weights = {"w1": 1.0, "w2": 2.0, "w3": 3.0, "w4": 4.0}
    for tenant, weight in weights.items():
        sim.tenant(tenant, TenantPolicy(weight))
    for _ in range(24_000 // slots * 2):
        for tenant in weights:
            sim.keep_backlogged(tenant, ONLINE, rng, (40, 40))
        sim.step()
    total = sum(sim.service.values())
    for tenant, weight in weights.items():
        assert sim.service[tenant, ONLINE] / total == pytest.approx(weight / 10, rel=0.03)


@pytest.mark.parametrize("rotate", [False, True])
def test_nothing_is_gained_by_splitting_or_rotating_identities(rotate: bool) -> None:
    """One tenant uses 16 keys and programs, or a new one for every request; it gets half all the same."""
    rng = random.Random(6)
    sim = Simulation(4, (ONLINE,))
    for step in range(4000):
        sim.keep_backlogged("plain", ONLINE, rng, (30, 30))
        name = str(step) if rotate else str(rng.randrange(16))
        sim.keep_backlogged("sly", ONLINE, rng, (30, 30), key=f"k{name}", program=f"p{name}", shared_backlog=True)
        sim.step()
    assert sim.service["sly", ONLINE] == pytest.approx(sim.service["plain", ONLINE], rel=0.05)


@pytest.mark.parametrize(("at_once", "turns"), [(1, 45), (4, 15)])
def test_a_rotating_program_does_not_starve_its_siblings(at_once: int, turns: int) -> None:
    """A client that names a new program for every request, `at_once` of them waiting, leaves the steady program of the
    same key about one turn in `at_once + 1`. Were new names to start at the lift, it would get none."""
    queue = FlowQueue({}, set())
    for number in range(100):
        queue.push(ticket(number, program="steady"), 10)
    waiting, number, served = 0, 100, Counter[bool]()
    for _ in range(100):
        while waiting < at_once:
            waiting, number = waiting + 1, number + 1
            queue.push(ticket(number, program=f"new{number}"), 10)
        steady = serve(queue).program == "steady"
        served[steady] += 1
        waiting -= not steady
    assert served[True] >= turns


def test_earliest_deadline_first_then_arrival_inside_a_flow() -> None:
    queue = FlowQueue({}, set())
    for number, (at_s, deadline) in enumerate([(0.0, None), (1.0, 90.0), (2.0, 50.0), (3.0, 50.0), (-1.0, None)]):
        queue.push(ticket(number, at_s=at_s, deadline_at_s=deadline), 10)
    assert [serve(queue).ticket_id for _ in range(5)] == ["t2", "t3", "t1", "t4", "t0"]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 5))), min_size=1, max_size=40), st.data()
)
def test_order_inside_a_flow_holds_with_cancellations(
    shapes: list[tuple[int, int | None]], data: st.DataObject
) -> None:
    queue = FlowQueue({}, set())
    waiting = [queue.push(ticket(n, at_s=at_s, deadline_at_s=due), 10) for n, (at_s, due) in enumerate(shapes)]
    left = [w for w in waiting if data.draw(st.booleans())]
    for gone in waiting:
        if gone not in left:
            queue.take(gone)

    def rank(w: Waiting) -> tuple[float, float, int]:
        due_s = w.ticket.deadline_at_s
        return (math.inf if due_s is None else due_s, w.ticket.arrived_at_s, w.number)

    due_first = sorted(left, key=rank)
    assert [serve(queue) for _ in left] == [w.ticket for w in due_first]
    assert queue.head() is None and len(queue) == 0 and queue.backlog == 0


def test_time_held_by_a_limit_earns_no_credit() -> None:
    """A tenant held by its own limit for long does not get everything once the limit is lifted."""
    held: set[str] = set()
    queue = FlowQueue({}, held)
    for number in range(400):
        queue.push(ticket(number, tenant="held" if number % 2 else "free"), 10)
    queue.hold("held")
    for _ in range(100):
        assert serve(queue).tenant == "free"
    queue.unhold("held")
    next_ones = Counter(serve(queue).tenant for _ in range(20))
    assert next_ones == {"held": 10, "free": 10}


def test_correction_goes_to_the_same_path_and_charges_sum_to_usage() -> None:
    """Whatever was predicted, produced and reported, each level's counters end at the service that was used."""
    sim = Simulation(3, (ONLINE,), OutputPredictor(window=3, first_guess_tokens=500))
    rng = random.Random(7)
    for step in range(400):
        for tenant, key in (("a", "k1"), ("a", "k2"), ("b", "k1")):
            if step < 300 and rng.random() < 0.3:
                sim.submit(tenant, ONLINE, rng.randint(1, 50), rng.randint(1, 50), key=key)
        sim.step()
    while sim.running or sim.queue.tickets():
        sim.step()
    counters = sim.queue.counters_snapshot()["classes"]["online"]["counters"]
    root = sim.queue._lines.of(ONLINE).flows.root
    for (tenant, key, _), service in sim.flow_service.items():
        node = root.children[tenant].children[key]
        lifted = node.counter - service
        assert lifted >= -1e-6, "a lift only adds"
    assert all(counter >= 0 for counter in counters.values())
    never_lifted = max(root.children.values(), key=lambda node: node.counter)
    assert never_lifted.counter >= max(sim.service.values()) - 1e-6


def test_sum_of_charges_is_usage_without_lifts() -> None:
    """One tenant, one flow: nothing can be lifted, so its counter is exactly the service used."""
    sim = Simulation(3, (ONLINE,), OutputPredictor(window=3, first_guess_tokens=500))
    rng = random.Random(8)
    for _ in range(100):
        sim.submit("a", ONLINE, rng.randint(1, 50), rng.randint(1, 50))
    while sim.running or sim.queue.tickets():
        sim.step()
    assert sim.queue.counters()[ONLINE]["a"] == pytest.approx(sim.service["a", ONLINE])


def test_flows_that_owe_nothing_are_forgotten_and_gain_nothing() -> None:
    """A hundred thousand identities leave a bounded tree; one that was forgotten comes back at the lift."""
    queue = RequestQueue({ONLINE: ClassPolicy(max_queued=100, max_wait_s=100)})
    queue.put_replica(Replica("r", "d", (ONLINE,), 4), 0.0)
    for number in range(30_000):
        assert queue.submit(ticket(number, program=f"p{number}"), 0.0) is None
        for lease in queue.grant(0.0):
            queue.release(lease.lease_id, None if number % 7 == 0 else _used(20), 0.0)
    flows = queue._lines.of(ONLINE).flows
    assert len(flows._flows) <= KEPT_IDLE + 10
    key = flows.root.children["a"].children[""]
    assert len(key.children) == len(flows._flows)
    back = flows.flow_of(ticket(0, program="p0"))
    assert back.counter >= key.floor > 0


def test_a_key_is_forgotten_with_its_last_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second key owes something for a hundred turns. Then it goes, too, long after its flow was idle."""
    monkeypatch.setattr("cluster.scheduling.flow_queue.KEPT_IDLE", 8)
    queue = FlowQueue({}, set())
    for number in range(1000):
        both = [queue.push(ticket(n, key=f"k{n}"), 10) for n in (2 * number, 2 * number + 1)]
        for waiting, service in zip(both, (1000.0, 10.0), strict=True):
            queue.take(waiting)
            charge(waiting.flow, service)
        for waiting in both:
            queue.left(waiting.flow)
    keys = queue.root.children["a"].children
    assert len(keys) == len(queue._flows) < 300
    heavy = queue.flow_of(ticket(0, key="k1998")).key
    assert heavy.counter > queue.root.children["a"].lift(), "what owes is kept"


def _used(tokens: int) -> TokenUsage:
    return TokenUsage(10, 0, tokens)


def test_counters_survive_a_restart() -> None:
    """A tenant that is ahead stays ahead, one that is new starts at the lift, and two snapshots may overlap."""
    first = RequestQueue({ONLINE: ClassPolicy(max_queued=100, max_wait_s=100)}, lease_prefix="1-")
    first.put_replica(Replica("r", "d", (ONLINE,), 2), 0.0)
    tickets = [ticket(n, tenant="ab"[n % 2], key=f"k{n % 3}") for n in range(12)]
    for one in tickets:
        first.submit(one, 0.0)
    running = first.grant(0.0)
    older = first.counters_snapshot()
    first.release(running[0].lease_id, _used(2000), 1.0)
    running = [running[1], *first.grant(1.0)]
    second = RequestQueue({ONLINE: ClassPolicy(max_queued=100, max_wait_s=100)}, lease_prefix="2-")
    for snapshot in (first.counters_snapshot(), older):
        second.recovery.restore_counters(snapshot)
    second.recovery.restore(first.tickets(), running, 2.0)
    assert second.counters()[ONLINE] == pytest.approx(first.counters()[ONLINE])
    second.submit(ticket(99, tenant="new"), 2.0)
    lift = min(second.counters()[ONLINE][t] for t in "ab")
    assert second.counters()[ONLINE]["new"] == pytest.approx(lift)
    second.put_replica(Replica("r", "d", (ONLINE,), 2), 2.0)
    for lease in running:
        first.release(lease.lease_id, _used(5), 3.0)
        second.release(lease.lease_id, _used(5), 3.0)
    for tenant in "ab":
        assert second.counters()[ONLINE][tenant] == pytest.approx(first.counters()[ONLINE][tenant])
    assert second.counters_snapshot()["version"] > older["version"]


def test_a_capped_tenant_keeps_its_place_without_hoarding() -> None:
    sim = Simulation(8, (ONLINE,))
    sim.tenant("capped", TenantPolicy(limits=TenantLimits(max_concurrent=2)))
    rng = random.Random(9)
    for _ in range(2000):
        sim.keep_backlogged("capped", ONLINE, rng, (20, 40))
        sim.keep_backlogged("free", ONLINE, rng, (20, 40))
        sim.step()
    share = sim.service["capped", ONLINE] / sum(sim.service.values())
    assert share == pytest.approx(2 / 8, abs=0.03), "its two slots are always in use: below its half, at its cap"


def test_counters_brought_back_late_are_no_credit() -> None:
    """A gateway that comes back long after a restart does not bring its tenant all that the others had meanwhile."""
    queue = RequestQueue({ONLINE: ClassPolicy(max_queued=100, max_wait_s=1000)})
    queue.put_replica(Replica("r", "d", (ONLINE,), 1), 0.0)
    counters = {("idle",): 0.0, ("busy",): 0.0}
    flows = {c.value: {"counters": counters if c is ONLINE else {}, "lifts": {(): 0.0}} for c in RequestClass}
    queue.recovery.restore_counters({"version": 1, "classes": flows})
    queue.recovery.restore([ticket(1, "busy")], [], 0.0)
    for number in range(2, 12):
        queue.submit(ticket(number, "busy"), 0.0)
        (lease,) = queue.grant(0.0)
        queue.release(lease.lease_id, _used(100), 0.0)
    queue.recovery.restore([ticket(50, "idle")], [], 100.0)
    assert queue.counters()[ONLINE]["idle"] == queue.counters()[ONLINE]["busy"] > 1000


def test_a_tenant_let_go_after_a_restart_has_no_credit_either() -> None:
    held = {"held"}
    queue = FlowQueue({}, held)
    queue.restore({"counters": {("held",): 0.0, ("free",): 500.0}, "lifts": {(): 0.0}})
    queue.push(ticket(1, "held"), 10, in_place=True)
    queue.push(ticket(2, "free"), 10, in_place=True)
    queue.unhold("held")
    assert queue.counters()["held"] == 500.0


def test_a_newcomer_does_not_win_the_tie_against_who_waits() -> None:
    queue = FlowQueue({}, set())
    for number in range(3):
        queue.push(ticket(number, "first"), 10)
    assert serve(queue, 100.0).tenant == "first"
    queue.push(ticket(9, "newcomer"), 10)
    assert queue.counters() == {"first": 100.0, "newcomer": 100.0}
    assert serve(queue).tenant == "first"

"""The queue's fairness promises: VTC's bound, weights, no credit from idling, floors between classes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduling import OutputPredictor
from cluster.vocabulary import RequestClass
from tests.unit.scheduling.simulator import Simulation

ONLINE, SEMI, OFFLINE = RequestClass


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    slots=st.integers(1, 12),
    sizes_a=st.tuples(st.integers(1, 200), st.integers(1, 120)),
    sizes_b=st.tuples(st.integers(1, 200), st.integers(1, 120)),
    predict=st.booleans(),
)
def test_two_backlogged_tenants_stay_within_the_vtc_bound(
    seed: int, slots: int, sizes_a: tuple[int, int], sizes_b: tuple[int, int], predict: bool
) -> None:
    """|W_a - W_b| <= 2U, U = max(w_in * longest input, w_out * tokens in a full batch): theorem 4.4."""
    rng = random.Random(seed)
    predictor = None if predict else OutputPredictor(window=1, first_guess_tokens=0)
    sim = Simulation(slots, (ONLINE,), predictor)
    bound = 2 * max(
        1 * max(sizes_a[0], sizes_b[0]), 2 * slots * (max(sizes_a[0], sizes_b[0]) + max(sizes_a[1], sizes_b[1]))
    )
    for _ in range(600):
        sim.keep_backlogged("a", ONLINE, rng, sizes_a)
        sim.keep_backlogged("b", ONLINE, rng, sizes_b)
        sim.step()
        assert abs(sim.service["a", ONLINE] - sim.service["b", ONLINE]) <= bound


def test_idling_earns_no_credit() -> None:
    rng = random.Random(2)
    sim = Simulation(4, (ONLINE,))
    for _ in range(3000):
        sim.keep_backlogged("steady", ONLINE, rng, (32, 32))
        sim.step()
    before = dict(sim.service)
    for _ in range(3000):
        sim.keep_backlogged("steady", ONLINE, rng, (32, 32))
        sim.keep_backlogged("late", ONLINE, rng, (32, 32))
        sim.step()
    steady = sim.service["steady", ONLINE] - before["steady", ONLINE]
    assert steady == pytest.approx(sim.service["late", ONLINE], rel=0.1)


def test_a_noisy_tenant_waits_for_its_own_work_only() -> None:
    """A tenant with 500 queued requests delays a newcomer's single request by less than one request's time."""
    sim = Simulation(4, (ONLINE,))
    for _ in range(500):
        sim.submit("noisy", ONLINE, 50, 50)
    for _ in range(200):
        sim.step()
    quiet = sim.submit("quiet", ONLINE, 50, 50)
    for _ in range(51):
        sim.step()
        if quiet in {lease.ticket.ticket_id for lease, _, _ in sim.running.values()}:
            return
    raise AssertionError("the quiet tenant's request was not started within one request's time")


def test_priority_between_classes_and_floors() -> None:
    """Online takes what it wants; the others keep their floors (0.1 and 0.05) and no class starves."""
    rng = random.Random(3)
    sim = Simulation(8, (ONLINE, SEMI, OFFLINE))
    for _ in range(8000):
        for request_class in RequestClass:
            sim.keep_backlogged("t", request_class, rng, (40, 40))
        sim.step()
    total = sum(sim.service.values())
    assert sim.service["t", SEMI] / total == pytest.approx(0.10, abs=0.02)
    assert sim.service["t", OFFLINE] / total == pytest.approx(0.05, abs=0.02)
    assert sim.service["t", ONLINE] / total == pytest.approx(0.85, abs=0.03)


def test_a_lower_class_takes_all_that_is_idle() -> None:
    rng = random.Random(4)
    sim = Simulation(8, (ONLINE, OFFLINE))
    for _ in range(200):
        sim.keep_backlogged("t", OFFLINE, rng, (40, 40))
        sim.step()
    assert sim.busy_slot_steps == 200 * 8


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), tenants=st.integers(2, 20))
def test_everyone_who_waits_is_served(seed: int, tenants: int) -> None:
    """No starvation: after the first `n` tenants' worst cost, each of n backlogged tenants has been served."""
    rng = random.Random(seed)
    sim = Simulation(2, (ONLINE,))
    for _ in range(tenants * 100):
        for tenant in range(tenants):
            sim.keep_backlogged(f"t{tenant}", ONLINE, rng, (30, 30))
        sim.step()
    assert all(sim.service[f"t{tenant}", ONLINE] > 0 for tenant in range(tenants))

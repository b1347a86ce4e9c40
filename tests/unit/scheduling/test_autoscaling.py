"""The scaler: up with the backlog at once, down only after idling, never outside its bounds, no oscillation."""

from __future__ import annotations

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduling import BacklogScaler, Demand, Fleet, ScalingBounds
from tests.unit.scheduling.plant import STEP_S, Plant

BOUNDS = ScalingBounds(min_replicas=0, max_replicas=4, slots_per_replica=8, wait_target_s=5, idle_timeout_s=60)
ROOMY = ScalingBounds(min_replicas=0, max_replicas=1000, slots_per_replica=8, wait_target_s=5, idle_timeout_s=60)
amounts = st.floats(0, 1e5)


def demand(waiting: int = 0, running: int = 0, backlog: float = 0, arrivals: float = 0, rate: float = 0) -> Demand:
    return Demand(waiting, running, backlog, arrivals, rate)


def busy(waiting: int, backlog: float, arrivals: float, running: int = 8) -> Demand:
    """With a rate that was measured under load: 100 tokens/s a replica."""
    return Demand(waiting, running, backlog, arrivals, 100.0, saturated=True)


def test_from_zero_by_slots_while_the_rate_is_unknown() -> None:
    decision = BacklogScaler(BOUNDS).decide(demand(waiting=9), current=0, now_s=0)
    assert decision.replicas == 2 and "9 waiting" in decision.reason


def test_guests_wake_one_replica_and_no_more() -> None:
    guests = Demand(0, 0, 0.0, 0.0, 0.0, guests=500)
    decision = BacklogScaler(BOUNDS).decide(guests, current=0, now_s=0)
    assert decision.replicas == 1 and "500 waiting" in decision.reason
    assert BacklogScaler(BOUNDS).decide(guests, current=1, now_s=0).replicas == 1


def test_a_rate_seen_under_light_load_orders_no_more_than_there_are_slots_to_fill() -> None:
    scaler = BacklogScaler(ROOMY)
    assert scaler.decide(demand(waiting=20, backlog=1e6, arrivals=1e4, rate=1), 0, 0).replicas == 3
    assert BacklogScaler(ROOMY).decide(demand(waiting=20, backlog=1000, rate=400), 0, 0).replicas == 1, "that is enough"


def test_the_backlog_is_cleared_within_the_wait_target() -> None:
    # 600 a second to clear 3000 tokens in 5 s, and 300 arriving.
    decision = BacklogScaler(ROOMY).decide(busy(5, backlog=3000, arrivals=300), 1, 0)
    assert decision.replicas == 9 and "3000 waiting" in decision.reason
    assert BacklogScaler(ROOMY).decide(busy(5, backlog=100, arrivals=300), 1, 0).replicas == 4


def test_what_will_be_cleared_before_a_new_replica_comes_orders_none() -> None:
    waits = busy(8, backlog=800, arrivals=100)
    assert BacklogScaler(ROOMY).decide(waits, 2, 0, Fleet(2, start_s=4)).replicas == 2
    assert BacklogScaler(ROOMY).decide(waits, 2, 0, Fleet(1, (1.0,), start_s=9)).replicas == 2, "one is coming"
    assert BacklogScaler(ROOMY).decide(waits, 1, 0, Fleet(1, start_s=4)).replicas > 1


def test_a_replica_that_takes_long_to_come_is_ordered_for_what_will_wait_then() -> None:
    # 50 more a second than one replica does, for 20 s, on top of 100: 1100 to clear within 20 s, beside what arrives.
    decision = BacklogScaler(ROOMY).decide(busy(4, backlog=100, arrivals=150), 1, 0, Fleet(1, start_s=20))
    assert decision.replicas == 3
    soon = BacklogScaler(ROOMY).decide(busy(40, backlog=5000, arrivals=150), 1, 0, Fleet(1, start_s=2))
    late = BacklogScaler(ROOMY).decide(busy(40, backlog=5000, arrivals=150), 1, 0, Fleet(1, start_s=40))
    assert soon.replicas == 12 and late.replicas == 4, "what comes late need not be many"


def test_prefill_inside_engines_counts_if_it_lasts() -> None:
    scaler = BacklogScaler(ROOMY)

    def at(second: float, prefill_s: float) -> int:
        return scaler.decide(Demand(0, 8, 0.0, 0.0, 0.0, prefill_s=prefill_s), 1, second).replicas

    assert at(0, 0.0) == 1
    assert at(1, 30.0) == 1, "one long prompt"
    assert [at(second, 30.0) for second in range(2, 60)][-1] == 6


def test_holds_for_the_idle_time_then_goes_to_zero() -> None:
    scaler = BacklogScaler(BOUNDS)
    assert scaler.decide(demand(waiting=16), 0, 0.0).replicas == 2
    assert scaler.decide(demand(), 2, 59.0).replicas == 2
    assert scaler.decide(demand(running=1), 2, 59.5).replicas == 2
    assert scaler.decide(demand(), 2, 61.0).replicas == 1, "one was needed at 59.5"
    assert scaler.decide(demand(), 1, 120.0).replicas == 0


def test_what_comes_back_soon_is_not_held_for_long_but_the_last_one_is() -> None:
    scaler, fleet = BacklogScaler(BOUNDS), Fleet(3, start_s=8)
    assert scaler.decide(demand(running=24), 3, 0.0, fleet).replicas == 3
    assert scaler.decide(demand(), 3, 7.0, fleet).replicas == 3
    decision = scaler.decide(demand(), 3, 9.0, fleet)
    assert decision.replicas == 1 and decision.needed == 0 and "kept at 1" in decision.reason
    assert scaler.decide(demand(), 1, 59.0, fleet).replicas == 1
    assert scaler.decide(demand(), 1, 61.0, fleet).replicas == 0


def test_a_scaler_that_knows_nothing_yet_keeps_what_there_is() -> None:
    scaler = BacklogScaler(BOUNDS)
    assert scaler.decide(demand(), 3, 0.0).replicas == 3
    assert scaler.decide(demand(), 3, 61.0).replicas == 0


def test_running_requests_keep_their_replicas() -> None:
    assert BacklogScaler(BOUNDS).decide(demand(running=17), 3, 0).replicas == 3


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 40), amounts, amounts, amounts, amounts), max_size=60))
def test_bounds_hold_and_nothing_goes_below_what_runs(
    history: list[tuple[int, int, float, float, float, float]],
) -> None:
    scaler, current = BacklogScaler(BOUNDS), 0
    for second, (waiting, running, backlog, arrivals, rate, start_s) in enumerate(history):
        now = Demand(waiting, running, backlog, arrivals, rate, saturated=rate > 5e4)
        current = scaler.decide(now, current, float(second), Fleet(current, start_s=start_s)).replicas
        assert min(4, math.ceil(running / 8)) <= current <= 4
        if waiting or running:
            assert current >= 1


@given(st.integers(1, 50), amounts, amounts, amounts, st.integers(0, 20), st.floats(0, 100), st.booleans())
def test_more_backlog_never_orders_less(
    waiting: int, less: float, more: float, arrivals: float, current: int, start_s: float, saturated: bool
) -> None:
    def replicas(backlog: float) -> int:
        now = Demand(waiting, 3, backlog, arrivals, 100.0, saturated=saturated)
        return BacklogScaler(ROOMY).decide(now, current, 0.0, Fleet(current, start_s=start_s)).replicas

    assert replicas(min(less, more)) <= replicas(max(less, more))


@settings(max_examples=40, deadline=None)
@given(st.floats(0.1, 8), st.floats(0.5, 45), st.floats(0, 0.5), st.integers(0, 10**6))
def test_constant_load_with_noise_does_not_oscillate(load: float, start_s: float, noise: float, seed: int) -> None:
    plant = Plant(start_s, seed=seed)
    plant.run(300, load, noise)
    settled = len(plant.history)
    plant.run(900, load, noise)
    seen = plant.history[settled:]
    assert plant.changes(since=settled) <= 6, "in a quarter of an hour"
    assert max(seen) - min(seen) <= max(1, max(seen) // 5)
    assert plant.backlog <= 5.0 * 100 * plant.history[-1], "the wait target is met"


@settings(max_examples=40, deadline=None)
@given(st.floats(0.1, 20), st.floats(0, 45))
def test_a_step_of_load_is_met_without_ordering_more_than_about_twice_as_much(load: float, start_s: float) -> None:
    plant = Plant(start_s)
    plant.run(4 * start_s + 60, load)
    assert max(plant.history) <= math.ceil(2.1 * load) + 1
    assert plant.backlog <= 5.0 * 100 * plant.history[-1]


@settings(max_examples=40, deadline=None)
@given(st.floats(0.1, 8), st.floats(0, 45), st.floats(1, 120))
def test_zero_once_the_load_is_over(load: float, start_s: float, idle_timeout_s: float) -> None:
    plant = Plant(start_s, idle_timeout_s=idle_timeout_s)
    plant.run(30, load)
    assert plant.history[-1] > 0
    before = len(plant.history)
    plant.run(1, 0)
    plant.run(60 + 3 * start_s + idle_timeout_s, 0)
    assert plant.backlog == 0 and plant.history[-1] == 0
    assert all(a >= b for a, b in itertools.pairwise(plant.history[-10:]))
    drained = next(i for i in range(before, len(plant.history)) if plant.history[i] == 0)
    assert set(plant.history[drained:]) == {0}


def test_alternating_load_does_not_oscillate() -> None:
    scaler, current, changes = BacklogScaler(BOUNDS), 0, 0
    for second in range(600):
        new = scaler.decide(demand(waiting=20 if second % 20 < 5 else 0), current, float(second)).replicas
        changes += new != current
        current = new
    assert changes == 1


def test_a_removal_that_was_regretted_makes_the_next_ones_slower() -> None:
    plant = Plant(start_s=4)
    for _ in range(40):
        plant.run(8, 1.5)
        plant.run(12, 0.4)
    half = len(plant.history) // 2
    assert plant.changes() > 4, "it tried"
    assert plant.changes(since=half) == 0, "and learned"
    assert half * STEP_S == 400

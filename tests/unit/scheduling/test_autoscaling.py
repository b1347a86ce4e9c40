"""The scaler: up with the backlog at once, down only after idling, never outside its bounds, no oscillation."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.scheduling import BacklogScaler, Demand, ScalingBounds

BOUNDS = ScalingBounds(min_replicas=0, max_replicas=4, slots_per_replica=8, wait_target_s=5, idle_timeout_s=60)


def demand(waiting: int = 0, running: int = 0, backlog: float = 0, arrivals: float = 0, rate: float = 0) -> Demand:
    return Demand(waiting, running, backlog, arrivals, rate)


def test_from_zero_by_slots_while_the_rate_is_unknown() -> None:
    decision = BacklogScaler(BOUNDS).decide(demand(waiting=9), current=0, now_s=0)
    assert decision.replicas == 2 and "9 waiting" in decision.reason


def test_guests_wake_one_replica_and_no_more() -> None:
    guests = Demand(0, 0, 0.0, 0.0, 0.0, guests=500)
    decision = BacklogScaler(BOUNDS).decide(guests, current=0, now_s=0)
    assert decision.replicas == 1 and "500 waiting" in decision.reason
    assert BacklogScaler(BOUNDS).decide(guests, current=1, now_s=0).replicas == 1


def test_by_tokens_when_the_rate_is_known() -> None:
    # 3000 tokens in 5 s plus 300/s at 400/s a replica: (600 + 300) / 400 = 2.25
    decision = BacklogScaler(BOUNDS).decide(demand(waiting=5, backlog=3000, arrivals=300, rate=400), 1, 0)
    assert decision.replicas == 3


def test_holds_for_the_idle_time_then_goes_to_zero() -> None:
    scaler = BacklogScaler(BOUNDS)
    assert scaler.decide(demand(waiting=16), 0, 0.0).replicas == 2
    assert scaler.decide(demand(), 2, 59.0).replicas == 2
    assert scaler.decide(demand(running=1), 2, 59.5).replicas == 2
    assert scaler.decide(demand(), 2, 61.0).replicas == 1, "one was needed at 59.5"
    assert scaler.decide(demand(), 1, 120.0).replicas == 0


def test_running_requests_keep_their_replicas() -> None:
    assert BacklogScaler(BOUNDS).decide(demand(running=17), 3, 0).replicas == 3


@given(
    st.lists(
        st.tuples(st.integers(0, 100), st.integers(0, 40), st.floats(0, 1e5), st.floats(0, 1e4), st.floats(0, 1e4)),
        max_size=60,
    )
)
def test_bounds_hold_and_waiting_work_always_gets_a_replica(
    history: list[tuple[int, int, float, float, float]],
) -> None:
    scaler, current = BacklogScaler(BOUNDS), 0
    for second, (waiting, running, backlog, arrivals, rate) in enumerate(history):
        current = scaler.decide(demand(waiting, running, backlog, arrivals, rate), current, float(second)).replicas
        assert 0 <= current <= 4
        if waiting or running:
            assert current >= 1


def test_alternating_load_does_not_oscillate() -> None:
    scaler, current, changes = BacklogScaler(BOUNDS), 0, 0
    for second in range(600):
        busy = second % 20 < 5
        new = scaler.decide(demand(waiting=20 if busy else 0), current, float(second)).replicas
        changes += new != current
        current = new
    assert changes == 1

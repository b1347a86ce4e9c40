"""The retry budget and the breakers: their formulas, and that they forget."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.config import TribesConfig
from serve_apps.gateway.courses.breakers import FORGET_S, Breakers
from serve_apps.gateway.courses.retry_budget import MOST_PATIENCE_S, WINDOW_S, RetryBudget
from tests.unit.serve_apps.harness import configuration

# --- the budget -------------------------------------------------------------------------------------------------------


def test_an_idle_gateway_has_its_floor() -> None:
    budget = RetryBudget(0.2, 1.0)
    assert [budget.allows(0.0) for _ in range(11)] == [True] * 10 + [False]
    assert budget.allows(20.0)


def test_a_share_of_what_runs_may_be_run_again() -> None:
    budget = RetryBudget(0.2, 0.0)
    assert not budget.allows(0.0)
    for _ in range(100):
        budget.started()
    assert sum(budget.allows(0.0) for _ in range(100)) == 20


def test_a_dying_replica_may_hand_over_all_of_its_streams() -> None:
    budget = RetryBudget(0.2, 0.0)
    for _ in range(100):
        budget.started()
    assert sum(budget.allows(0.0, begun=True) for _ in range(200)) == 100
    # Nor do they use up what is left for those that would run again from the beginning.
    assert sum(budget.allows(0.0) for _ in range(200)) == 20


@given(st.lists(st.tuples(st.floats(0, 2), st.sampled_from("sera")), max_size=200), st.floats(0, 1), st.floats(0, 5))
def test_never_more_than_the_formula(steps: list[tuple[float, str]], share: float, floor_per_s: float) -> None:
    budget, now_s, running = RetryBudget(share, floor_per_s), 0.0, 0
    ended: list[float] = []
    again: dict[str, list[float]] = {"r": [], "a": []}
    for wait_s, step in steps:
        now_s += wait_s
        if step == "s":
            budget.started()
            running += 1
        elif step == "e" and running:
            budget.ended(now_s)
            running -= 1
            ended.append(now_s)
        elif step in "ra":
            faded = [sum(math.exp((t - now_s) / WINDOW_S) for t in times) for times in (again[step], ended)]
            factor = 1.0 if step == "a" else share
            limit = floor_per_s * WINDOW_S + factor * (running + faded[1])
            allowed = budget.allows(now_s, begun=step == "a")
            if abs(faded[0] + 1 - limit) > 1e-6:
                assert allowed == (faded[0] + 1 < limit)
            if allowed:
                again[step].append(now_s)


@given(st.integers(0, 300), st.floats(0, 3))
def test_whoever_waits_as_long_as_told_is_allowed(tries: int, floor_per_s: float) -> None:
    budget = RetryBudget(0.0, floor_per_s)
    for _ in range(tries):
        budget.allows(0.0)
    patience_s = budget.patience_s(0.0)
    assert 1.0 <= patience_s <= MOST_PATIENCE_S
    if floor_per_s * WINDOW_S >= 2:
        assert budget.allows(patience_s + 1.0)


# --- breakers ---------------------------------------------------------------------------------------------------------


def test_opens_after_so_many_failures_in_a_row_and_closes_with_a_success() -> None:
    breakers = Breakers(3, 1.0, 8.0)
    for now_s in (0.0, 0.1):
        breakers.failed("r", now_s, now_s)
    breakers.succeeded("r", 0.2)
    for now_s in (0.3, 0.4):
        breakers.failed("r", now_s, now_s)
    assert breakers.open(0.4) == ()
    breakers.failed("r", 0.5, 0.5)
    assert breakers.open(0.5) == ("r",) and breakers.open(1.49) == ("r",)
    assert breakers.open(1.5) == ()  # half-open: it is asked again
    breakers.succeeded("r", 1.6)
    breakers.failed("r", 1.7, 1.7)
    assert breakers.open(1.7) == ()


def test_each_relapse_lasts_twice_as_long_up_to_a_bound() -> None:
    breakers, now_s, lasted = Breakers(1, 1.0, 8.0), 0.0, []
    for _ in range(6):
        breakers.failed("r", now_s, now_s)
        opened_s = now_s
        while breakers.open(now_s):
            now_s += 0.25
        lasted.append(now_s - opened_s)
    assert lasted == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_streams_that_began_before_it_opened_change_nothing() -> None:
    breakers = Breakers(2, 1.0, 8.0)
    for _ in range(50):  # all that ran on it died with it
        breakers.failed("r", 0.0, 5.0)
    assert breakers.open(5.9) == ("r",) and breakers.open(6.0) == ()
    breakers.succeeded("r", 1.0)
    breakers.failed("r", 6.1, 6.1)
    assert breakers.open(8.0) == ("r",)  # still half-open, so one is enough


def test_who_is_asked_while_it_is_open_and_fails_does_not_keep_it_open() -> None:
    """The only replica of a class is asked all the same, many times."""
    heard: list[tuple[str, float]] = []
    breakers = Breakers(1, 1.0, 8.0, lambda replica_id, open_for_s: heard.append((replica_id, open_for_s)))
    for number in range(10):
        breakers.failed("r", number / 16, number / 16)
    assert breakers.open(0.9) == ("r",) and breakers.open(1.0) == ()
    breakers.failed("r", 1.0, 1.0)
    assert heard == [("r", 1.0), ("r", 2.0)]


def test_replicas_that_are_gone_are_forgotten() -> None:
    breakers = Breakers(1, 1.0, 8.0)
    breakers.failed("r", 0.0, 0.0)
    breakers.failed("s", 0.0, 0.0)
    assert set(breakers.open(0.5)) == {"r", "s"}
    breakers.open(2.0 + FORGET_S)
    assert not breakers._breakers


class BreakerMachine(RuleBasedStateMachine):
    """Against a model that is told only what matters: outcomes of requests that begin one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.breakers = Breakers(3, 1.0, 4.0)
        self.now_s = 0.0
        self.in_a_row = 0
        self.open_until_s = 0.0
        self.last_s = 0.0

    @property
    def is_open(self) -> bool:
        return self.now_s < self.open_until_s

    @rule(seconds=st.sampled_from([0.125, 0.5, 1.0, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @precondition(lambda self: not self.is_open)
    @rule()
    def a_request_fails(self) -> None:
        self.breakers.failed("r", self.now_s, self.now_s)
        self.in_a_row += 1
        if self.in_a_row >= 3 or self.last_s:
            self.last_s = min(4.0, 2 * self.last_s or 1.0)
            self.open_until_s = self.now_s + self.last_s

    @precondition(lambda self: not self.is_open)
    @rule()
    def a_request_succeeds(self) -> None:
        self.breakers.succeeded("r", self.now_s)
        self.in_a_row, self.last_s = 0, 0.0

    @rule()
    def an_old_stream_ends(self) -> None:
        if self.last_s:
            self.breakers.succeeded("r", self.open_until_s - self.last_s - 0.01)
            self.breakers.failed("r", self.open_until_s - self.last_s - 0.01, self.now_s)

    @invariant()
    def agrees(self) -> None:
        if self.now_s < self.open_until_s + FORGET_S:
            assert bool(self.breakers.open(self.now_s)) == self.is_open


TestBreakers = BreakerMachine.TestCase


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gateway", "said"),
    [
        ({"breaker": {"open_s": 9, "max_open_s": 3}}, "max_open_s"),
        ({"retries": {"share": 1.5}}, "share"),
        ({"hedge": {}}, "after_s"),
        ({"hedge": {"after_s": 0}}, "after_s"),
        ({"max_continuations": -1}, "max_continuations"),
        ({"stall_timeout_s": 0}, "stall_timeout_s"),
    ],
)
def test_bad_values_name_their_key(tmp_path: object, gateway: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TribesConfig.model_validate(configuration(tmp_path, gateway=gateway))  # type: ignore[arg-type]

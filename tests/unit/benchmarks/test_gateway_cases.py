"""From answers to figures: latencies, what a door adds, costs, order."""

from __future__ import annotations

import pytest

from benchmarks.gateway_sides.cases import (
    CASES,
    added,
    cpu_figures,
    figures,
    keeps_up,
    rotated,
    saturated,
)
from benchmarks.gateway_sides.connection import Answer
from benchmarks.gateway_sides.load import PATIENCE_S, Outcome


def outcome(*first_ms: float, failed: int = 0, queue_ms: float = 0.0) -> Outcome:
    answers = [Answer(0.0, ms / 1e3, 2 * ms / 1e3, ok=True, queue_s=queue_ms / 1e3) for ms in first_ms]
    answers += [Answer(0.0, 0.001, 0.001, ok=False) for _ in range(failed)]
    return Outcome(answers, seconds=2.0, client_cpu_s=0.1)


def test_percentiles_and_rates() -> None:
    found = figures(outcome(*range(1, 101), queue_ms=0.5))
    assert found["ttft_p50_ms"] == pytest.approx(51)
    assert found["ttft_p99_ms"] == pytest.approx(100)
    assert found["total_p50_ms"] == pytest.approx(102)
    assert found["beyond_queue_p50_ms"] == pytest.approx(50.5)
    assert found["rps"] == 50
    assert found["client_cpu_s_per_1000"] == pytest.approx(1.0)


def test_failures_are_no_fast_answers() -> None:
    found = figures(outcome(*[1.0] * 95, failed=5))
    assert found["failed"] == 5
    assert found["rps"] == 47.5
    assert found["ttft_p99_ms"] == PATIENCE_S * 1e3
    assert found["ttft_p50_ms"] == pytest.approx(1.0)


def test_what_a_door_adds_is_the_difference_to_the_engine_alone() -> None:
    direct, door = figures(outcome(1.0, 1.0, 2.0)), figures(outcome(3.0, 4.0, 9.0, queue_ms=1.0))
    more = added(door, direct)
    assert more["added_ttft_p50_ms"] == pytest.approx(3.0)
    assert more["added_ttft_p99_ms"] == pytest.approx(7.0)
    assert more["added_total_p50_ms"] == pytest.approx(6.0)
    assert more["added_beyond_queue_p50_ms"] == pytest.approx(2.0)


def test_cpu_seconds_per_thousand_requests() -> None:
    found = cpu_figures({"gateway": 1.5, "haproxy": 0.5}, 4000)
    assert found["cpu_s_per_1000"] == pytest.approx(0.5)
    assert found["cpu_s_per_1000_by_role"] == {"gateway": 0.375, "haproxy": 0.125}


def test_saturation_is_the_best_of_the_crowded_loops() -> None:
    assert saturated({"c1": {"rps": 900.0}, "c16": {"rps": 500.0}, "c64": {"rps": 400.0}}) == 500.0
    assert saturated({"c1": {"rps": 900.0}}) is None


def test_an_open_loop_is_offered_only_to_doors_that_keep_up() -> None:
    assert keeps_up(CASES["open300"], [200.0, 400.0])
    assert not keeps_up(CASES["open300"], [33.0, 220.0])
    assert keeps_up(CASES["open300"], []), "nothing is known about it"
    assert keeps_up(CASES["c64"], [10.0])


def test_rounds_begin_with_another_each_time() -> None:
    orders = [rotated("abc", number) for number in range(4)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]
    assert rotated([], 3) == []

"""The formulas of fairness."""

from __future__ import annotations

import pytest

from cluster.scheduling import ServiceWeights
from cluster.simulation import Request
from cluster.simulation.fairness import fairness, max_min, service_between

W = ServiceWeights()


def served(tenant: str, arrived_s: float, first_s: float, end_s: float, prompt: int, output: int) -> Request:
    request = Request(0, arrived_s, prompt, output, tenant)
    request.first_token_s, request.finished_s = first_s, end_s
    return request


def test_service_is_spread_from_the_first_token_to_the_end() -> None:
    requests = [served("a", 0, 10, 20, 100, 50), served("b", 0, 12, 12, 30, 1), served("c", 0, -1, -1, 9, 9)]
    assert service_between(requests, W, 10, 15) == {"a": 100.0, "b": 32.0}
    assert service_between(requests, W, 15, 100) == {"a": 100.0}


def test_max_min_gives_what_the_modest_leave_to_the_others() -> None:
    assert max_min({"a": 10, "b": 100, "c": 100}, 110, {}) == {"a": 10, "b": 50, "c": 50}
    assert max_min({"a": 100, "b": 100}, 80, {"a": 3.0}) == {"a": 60, "b": 20}
    assert max_min({"a": 10, "b": 20}, 100, {}) == {"a": 10, "b": 20}


def test_equal_service_is_fair_and_one_sided_is_not() -> None:
    even = [served(t, s, s, s + 1, 50, 25) for s in range(600) for t in "ab"]
    found = fairness(even, W, {})
    assert found.jain == pytest.approx(1.0) and found.difference_max == pytest.approx(0, abs=2)
    # b asks as much as a and gets nothing until the end.
    late = [served("a", s, s, s + 1, 50, 25) for s in range(600)]
    late += [served("b", s, 5000, 5001, 50, 25) for s in range(600)]
    found = fairness(late, W, {})
    assert found.jain == pytest.approx(0.5) and found.difference_mean == pytest.approx(100, rel=0.05)

"""The fairness metrics against cases worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.fairness_sides import metrics
from benchmarks.fairness_sides.engine_model import Running
from benchmarks.fairness_sides.workload import Request


def served(tenant: str, first_token_at_s: float, finished_at_s: float, prompt: int, output: int) -> Running:
    request = Request(0, tenant, 0.0, prompt, output)
    return Running(request, 0.0, first_token_at_s, finished_at_s, output)


def test_service_is_spread_evenly_from_the_first_token_to_the_end() -> None:
    one = served("a", 10.0, 20.0, prompt=100, output=50)  # service 200
    assert metrics.service_between([one], 0.0, 100.0) == {"a": pytest.approx(200.0)}
    assert metrics.service_between([one], 15.0, 17.5) == {"a": pytest.approx(50.0)}
    assert metrics.service_between([one], 20.0, 30.0) == {}


def test_an_answer_of_one_token_counts_where_it_came() -> None:
    one = served("a", 10.0, 10.0, prompt=7, output=1)
    assert metrics.service_between([one], 10.0, 11.0) == {"a": 9.0}
    assert metrics.service_between([one], 0.0, 10.0) == {}


@pytest.mark.parametrize(
    ("asked_per_s", "difference"),
    [
        (6, 6.0),  # b got nothing and asked for less than a got: it lacks what it asked for
        (14, 10.0),  # b asked for more: it lacks what a got
    ],
)
def test_windowed_difference(asked_per_s: int, difference: float) -> None:
    a = served("a", 0.0, 700.0, prompt=0, output=3500)  # 10 a second, asked for before the first window
    asks = [Request(n, "b", n + 0.5, asked_per_s, 0) for n in range(600)]
    found = metrics.windowed_difference([a], [a.request, *asks], 600.0)
    assert found.starts_s[0] == 28.5 and found.starts_s[-1] == 541.5 and len(found.starts_s) == 19
    assert found.values[:-1] == pytest.approx([difference] * 18)
    # 59 of b's requests arrive in the last window, which reaches beyond the 600 s.
    assert found.values[-1] == pytest.approx(min(asked_per_s * 59 / 60, 10.0))
    assert found.max == pytest.approx(difference)


def test_difference_has_maximum_mean_and_variance() -> None:
    difference = metrics.Difference((0.0, 1.0, 2.0), (1.0, 2.0, 6.0))
    assert (difference.max, difference.mean, difference.variance) == (6.0, 3.0, pytest.approx(14 / 3))


def test_a_tenant_served_beyond_what_it_asks_now_lacks_nothing_it_asked_for() -> None:
    """|asked - got| for a tenant that is served work from before the window, as long as another got more."""
    a = served("a", 0.0, 700.0, prompt=0, output=3500)
    b = served("b", 0.0, 700.0, prompt=0, output=1050)  # 3 a second, asked for before
    found = metrics.windowed_difference([a, b], [a.request, b.request], 600.0)
    assert found.values == pytest.approx([3.0] * 19)  # min(10 - 3, |0 - 3|)


def test_accumulated_gap_and_shares() -> None:
    runs = [served("a", 0.0, 10.0, 0, 50), served("b", 0.0, 10.0, 0, 150)]
    assert metrics.accumulated_gap(runs, ("a", "b"), 5.0, 10.0) == pytest.approx(100.0)
    assert metrics.accumulated_gap(runs, ("a", "b", "c"), 5.0, 10.0) == pytest.approx(150.0)
    assert metrics.shares(runs, 0.0, 10.0) == {"a": pytest.approx(0.25), "b": pytest.approx(0.75)}


def test_jain() -> None:
    assert metrics.jain([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert metrics.jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert metrics.jain([1.0, 2.0, 3.0]) == pytest.approx(36 / 42)
    assert metrics.jain([0.0, 0.0]) == 1.0


def test_jain_of_shares_forgives_a_tenant_that_asks_for_little() -> None:
    runs = [served("modest", 0.0, 10.0, 0, 5), served("greedy", 0.0, 10.0, 0, 50)]
    asks = [runs[0].request, *(Request(n, "greedy", 0.0, 0, 50) for n in range(9))]
    assert metrics.jain_of_shares(runs, asks, 10.0) == pytest.approx(1.0)


def test_ttft_of_some_tenants() -> None:
    runs = [served("a", 2.0, 10.0, 1, 5), served("b", 3.0, 10.0, 1, 5)]
    assert metrics.ttfts_s(runs) == [2.0, 3.0]
    assert metrics.ttfts_s(runs, ["b"]) == [3.0]

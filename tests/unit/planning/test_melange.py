"""Mélange's published example, and the search against trying everything."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from cluster.planning.melange import cheapest_fleet

# arXiv 2404.14527 and its repository: input sizes by output sizes, 30 requests/s in all.
RATES = [30 * share for share in (0.2, 0.1, 0.5, 0.2)]
HIGHEST = {"A10G": [2, 1, 5, 2], "A100-80G": [20, 20, 40, 20]}
PRICES = {"A10G": 1.01, "A100-80G": 3.67}


@pytest.mark.parametrize(
    ("slices", "counts", "usd"),
    [
        (1, {"A10G": 3, "A100-80G": 1}, 6.70),
        (2, {"A10G": 2, "A100-80G": 1}, 5.69),
        (4, {"A10G": 2, "A100-80G": 1}, 5.69),
        (8, {"A10G": 2, "A100-80G": 1}, 5.69),
    ],
)
def test_the_published_example(slices, counts, usd):
    fleet = cheapest_fleet(RATES, HIGHEST, PRICES, slices=slices)
    assert fleet is not None and fleet.proven
    assert fleet.counts == counts
    assert fleet.usd_per_hour == pytest.approx(usd)


def test_the_shares_carry_all_requests_within_the_counts():
    fleet = cheapest_fleet(RATES, HIGHEST, PRICES)
    assert fleet is not None
    loads = dict.fromkeys(HIGHEST, 0.0)
    for number, shares in enumerate(fleet.shares):
        assert sum(shares.values()) == pytest.approx(1)
        for name, share in shares.items():
            loads[name] += share * RATES[number] / HIGHEST[name][number]
    assert all(load <= fleet.counts[name] + 1e-9 for name, load in loads.items())


def by_trying(rates, highest, prices, slices):
    names = list(highest)
    parts = [(number, slices) for number, rate in enumerate(rates) if rate]
    best = math.inf
    for places in itertools.product(*[itertools.product(names, repeat=slices) for _ in parts]):
        loads = dict.fromkeys(names, 0.0)
        for (number, _), chosen in zip(parts, places, strict=True):
            for name in chosen:
                rate = highest[name][number]
                loads[name] += rates[number] / slices / rate if rate else math.inf
        if math.inf not in loads.values():
            best = min(best, sum(prices[name] * math.ceil(load - 1e-9) for name, load in loads.items()))
    return best


@pytest.mark.parametrize("seed", range(8))
def test_the_search_is_exact(seed):
    draw = random.Random(seed)
    types = ["a", "b", "c"][: draw.randint(2, 3)]
    rates = [draw.choice([0.0, draw.uniform(1, 30)]) for _ in range(3)]
    highest = {name: [draw.choice([0.0, draw.uniform(1, 20), draw.uniform(1, 20)]) for _ in rates] for name in types}
    highest["a"] = [draw.uniform(1, 10) for _ in rates]  # someone can serve everything
    prices = {name: draw.uniform(0.5, 5) for name in types}
    fleet = cheapest_fleet(rates, highest, prices, slices=2)
    assert fleet is not None and fleet.proven
    assert fleet.usd_per_hour == pytest.approx(by_trying(rates, highest, prices, 2))


def test_a_size_that_nobody_can_serve_has_no_fleet():
    assert cheapest_fleet([1, 1], {"a": [1, 0], "b": [1, 0]}, {"a": 1, "b": 1}) is None


def test_out_of_time_it_says_that_nothing_is_proven():
    fleet = cheapest_fleet(RATES, HIGHEST, PRICES, slices=8, nodes=5)
    assert fleet is not None and not fleet.proven
    assert fleet.usd_per_hour >= 5.69

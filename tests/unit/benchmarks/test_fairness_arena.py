"""The gates on the recorded trace: the published order, VTC's figures against FCFS's, ours against both."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

from benchmarks.fairness_sides import metrics, scenarios
from benchmarks.fairness_sides.engine_model import EngineModel
from benchmarks.fairness_sides.policies import RateLimit
from benchmarks.fairness_sides.workload import ARENA_FILE, arena

DATA = Path(__file__).parents[4] / "shared" / "data"
REPETITIONS = 3

pytestmark = pytest.mark.skipif(not (DATA / ARENA_FILE).is_file(), reason=f"{ARENA_FILE} is not there")
Medians = dict[str, tuple[float, float, float]]


@pytest.fixture(scope="module")
def figures() -> dict[str, list[tuple[float, float, float]]]:
    """Maximum and mean of the windowed difference, tokens/s, by policy and repetition; the first is as recorded."""
    recorded = arena(DATA)
    loads = [scenarios.moved(recorded, repetition) for repetition in range(REPETITIONS)]
    found = {}
    for name in ("fcfs", "lcf", "vtc", "vtc_oracle", scenarios.OURS):
        make = scenarios.makers()[name]
        courses = [EngineModel(make()).run(load) for load in loads]
        differences = [
            metrics.windowed_difference(course.served, load, scenarios.ARENA_S)
            for course, load in zip(courses, loads, strict=True)
        ]
        found[name] = [(d.max, d.mean, c.tokens_per_s) for d, c in zip(differences, courses, strict=True)]
        assert all(len(course.served) == 1500 for course in courses)
    return found


@pytest.fixture(scope="module")
def medians(figures: dict[str, list[tuple[float, float, float]]]) -> Medians:
    return {
        name: (median(v[0] for v in values), median(v[1] for v in values), median(v[2] for v in values))
        for name, values in figures.items()
    }


def test_the_published_order_holds(figures: dict[str, list[tuple[float, float, float]]]) -> None:
    for figure in (0, 1):
        values = [figures[name][0][figure] for name in ("vtc_oracle", "vtc", "lcf", "fcfs")]
        assert values == sorted(values), values


def test_vtc_is_as_much_fairer_than_fcfs_as_published(medians: Medians) -> None:
    assert medians["vtc"][0] <= 0.55 * medians["fcfs"][0]
    assert medians["vtc"][1] <= 0.70 * medians["fcfs"][1]
    assert medians["vtc"][2] >= 0.99 * medians["fcfs"][2]


def test_ours_is_at_least_as_fair_as_vtc_and_nearer_to_the_oracle(medians: Medians) -> None:
    ours, vtc, oracle = medians[scenarios.OURS], medians["vtc"], medians["vtc_oracle"]
    for figure in (0, 1):
        assert ours[figure] <= vtc[figure], medians
        assert max(0.0, ours[figure] - oracle[figure]) <= max(0.0, vtc[figure] - oracle[figure]), medians
    assert ours[2] >= 0.99 * medians["fcfs"][2]


def test_the_figures_are_near_the_ones_known_for_this_model(medians: Medians) -> None:
    """A simulator written elsewhere from the same formulas: VTC 404/237, FCFS 765/358, LCF 599/279, oracle 369/225."""
    known = {"vtc": (404, 237), "fcfs": (765, 358), "lcf": (599, 279), "vtc_oracle": (369, 225)}
    for name, (most, mean) in known.items():
        assert medians[name][0] == pytest.approx(most, rel=0.15)
        assert medians[name][1] == pytest.approx(mean, rel=0.15)
        assert medians[name][2] == pytest.approx(831, rel=0.02)


@pytest.mark.parametrize(("per_minute", "served"), [(30, 1325), (20, 1159), (15, 1053), (10, 900), (5, 581)])
def test_rate_limits_serve_as_many_as_known(per_minute: int, served: int) -> None:
    requests = arena(DATA)
    policy = RateLimit(per_minute)
    assert sum(policy.arrive(request, request.arrived_at_s) for request in requests) == served

"""The sums of a run: exact, bounded in size, and close enough in their quantiles."""

from __future__ import annotations

import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_jobs.reporting.histogram import Histogram
from batch_jobs.reporting.stats import MAX_ERROR_KINDS, OTHER_ERRORS, RowStat, RunStats
from batch_jobs.reporting.timeline import MAX_BUCKETS, Timeline


def test_duplicates_are_rows_but_never_tokens() -> None:
    stats = RunStats(["a", "b"])
    stats.record("a", 1.0, [RowStat(0, "0", 10, 4, 5, None, 2.0), RowStat(1, "1", 10, 4, 5, None, 0.0, duplicate=True)])
    stats.record("b", 2.0, [RowStat(2, "2", 7, 0, 0, "prompt_too_long", 0.1)])
    stats.record("b", 9.0, [RowStat(3, "3", 10, 4, 5, None, 0.0, duplicate=True)])
    totals = stats.totals()
    assert (totals.rows, totals.ok, totals.duplicates, totals.errors) == (4, 3, 2, {"prompt_too_long": 1})
    assert (totals.prompt_tokens, totals.cached_tokens, totals.output_tokens) == (17, 4, 5)
    assert stats.pools["a"].seconds.count == 1 and stats.pools["b"].seconds.count == 0
    assert stats.pools["b"].last_active_s == 2.0  # a copied answer is no work of the pool
    assert stats.pools["a"].timeline.output_tokens[2] == 5


def test_size_does_not_grow_with_the_rows() -> None:
    stats, random_ = RunStats(["a", "b"]), random.Random(1)
    for second in range(0, 100_000, 7):
        row = RowStat(
            second, f"id-{second}", random_.randrange(100_000), 0, random_.randrange(9000), f"kind-{second}"
            if second % 2 else None, random_.expovariate(0.01),
        )  # fmt: skip
        stats.record("ab"[second % 2], second, [row])
    assert len(pickle.dumps(stats)) < 40_000
    assert len(stats.pools["b"].totals.errors) <= MAX_ERROR_KINDS + 1
    assert stats.pools["b"].totals.errors[OTHER_ERRORS] > 1000
    assert pickle.loads(pickle.dumps(stats)).totals() == stats.totals()


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 9)), max_size=60))
def test_a_timeline_loses_nothing_and_stays_short(moments: list[tuple[float, int]]) -> None:
    timeline = Timeline()
    for at_s, count in moments:
        timeline.add(at_s, count, 2 * count, 3 * count)
    assert sum(timeline.rows) == sum(count for _, count in moments)
    assert sum(timeline.output_tokens) == 3 * sum(timeline.rows)
    assert len(timeline.rows) <= MAX_BUCKETS
    for at_s, count in moments:
        assert timeline.rows[int(at_s / timeline.width_s)] >= count


def test_timelines_of_all_pools_have_one_width() -> None:
    stats = RunStats(["a", "b"])
    stats.record("a", 3.0, [RowStat(0, "0", 1, 0, 1, None, 1.0)])
    stats.record("b", 1000.0, [RowStat(1, "1", 1, 0, 1, None, 1.0)])
    stats.record("a", 5.0, [RowStat(2, "2", 1, 0, 1, None, 1.0)])
    assert stats.pools["a"].timeline.width_s == stats.pools["b"].timeline.width_s == 8.0
    assert stats.pools["a"].timeline.rows == [2]


@given(st.lists(st.floats(0.002, 1e5), min_size=1, max_size=200), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_quantiles_are_off_by_one_bucket_at_most(values: list[float], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[max(-(-int(share * 1000) * len(values) // 1000) - 1, 0)]
    assert histogram.quantile(share) == pytest.approx(exact, rel=0.0906)
    assert histogram.mean == pytest.approx(sum(values) / len(values))


def test_extreme_values_and_none_at_all() -> None:
    histogram = Histogram()
    assert histogram.quantile(0.5) is None and histogram.as_json()["p99"] is None
    for value in (0.0, -1.0, 1e30):
        histogram.add(value)
    assert len(histogram.buckets) == 2 and histogram.as_json()["max"] == 1e30
    assert histogram.plus(Histogram()) == histogram

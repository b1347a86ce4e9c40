"""A dry run's arithmetic, against numbers worked out by hand and against drawn samples."""

from __future__ import annotations

import io
import json
import random

import pytest
from rich.console import Console

from batch_jobs.errors import JobRefused
from batch_jobs.reporting.predict import Prediction, _student_t, predict, print_prediction
from batch_jobs.reporting.stats import PoolLife, RowStat, RunStats


def row(prompt: int, output: int) -> RowStat:
    return RowStat(0, "0", prompt, 0, output, None, 1.0)


def sampled(**pools: tuple[float, int]) -> tuple[RunStats, dict[str, PoolLife]]:
    """Per pool: seconds from its ready engine to its last row, and rows of 60 + 40 tokens in them."""
    stats, lives = RunStats(list(pools)), {}
    for name, (seconds, rows) in pools.items():
        stats.record(name, 20.0 + seconds, [row(60, 40)] * rows)
        lives[name] = PoolLife(1, 1, 20.0 + seconds, [20.0], first_ready_s=20.0)
    return stats, lives


def test_rates_of_pools_and_engines_add_up() -> None:
    stats, lives = sampled(a=(10.0, 10), b=(10.0, 30))  # 100 and 300 tokens/s
    got = predict(stats, lives, rows=10_000, engines={"a": 4, "b": 2}, prices={"a": 1.0, "b": 3.0})
    assert got.tokens_per_s == 1000.0
    assert got.input_tokens.value == 600_000 and got.output_tokens.value == 400_000
    assert got.seconds.value == pytest.approx(1020.0)
    assert got.seconds.low == got.seconds.high == pytest.approx(1020.0)  # rows without any spread
    assert got.usd.value == pytest.approx(10.0 * 1020 / 3600)
    assert got.usd_per_mtok == pytest.approx(10.0 * 1020 / 3600)
    assert [pool.share for pool in got.pools] == pytest.approx([0.4, 0.6])


def test_a_pool_that_starts_late_joins_late() -> None:
    stats, lives = sampled(a=(10.0, 10), b=(10.0, 30))
    lives["b"].start_s = [120.0]
    got = predict(stats, lives, 500, {"a": 1, "b": 1}, {})  # a: 10 000 tokens until 120 s, then 400/s together
    assert got.seconds.value == pytest.approx(120 + 40_000 / 400)
    early = predict(stats, lives, 50, {"a": 1, "b": 1}, {})
    assert early.seconds.value == pytest.approx(20 + 50) and early.pools[1].share == 0
    assert early.usd_per_mtok is None


def test_a_sample_on_several_engines_is_counted_per_engine() -> None:
    stats, lives = sampled(a=(10.0, 10))
    lives["a"].start_s = [10.0, 30.0]
    got = predict(stats, lives, 1000, {"a": 1}, {})
    assert got.tokens_per_s == 50.0 and got.pools[0].start_s == 20.0


def test_an_unmeasured_pool_helps_nothing_but_is_named_and_paid() -> None:
    stats, lives = sampled(a=(10.0, 10))
    got = predict(stats, lives, 1000, {"a": 1, "new": 1}, {"a": 1.0, "new": 1.0})
    assert got.tokens_per_s == 100.0
    assert got.pools[1].share == 0.0 and got.pools[1].usd == got.pools[0].usd > 0
    assert "not measured" in printed(got)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    random_, held = random.Random(3), 0
    population = [row(random_.randrange(50, 400), random_.randrange(1, 200)) for _ in range(400)]
    truth = sum(each.prompt_tokens for each in population)
    for _ in range(300):
        stats = RunStats(["a"])
        stats.record("a", 10.0, random_.sample(population, 20))
        tokens = predict(stats, {}, 400, {"a": 1}, {}).input_tokens
        assert tokens.low is not None and tokens.high is not None
        held += tokens.low <= truth <= tokens.high
    assert 0.91 <= held / 300 <= 0.99


def test_the_whole_input_as_sample_leaves_no_doubt_and_one_row_leaves_all() -> None:
    stats = RunStats(["a"])
    stats.record("a", 10.0, [row(10, 1), row(90, 9)])
    assert predict(stats, {}, 2, {"a": 1}, {}).input_tokens.high == 100
    one = RunStats(["a"])
    one.record("a", 10.0, [row(10, 1)])
    got = predict(one, {}, 50, {"a": 1}, {})
    assert got.input_tokens.value == 500 and got.seconds.low is None
    assert "says nothing about the spread" in printed(got)


def test_rows_that_cost_nothing_lower_the_estimate() -> None:
    stats = RunStats(["a"])
    copy = RowStat(1, "1", 100, 0, 100, None, 0.0, duplicate=True)
    stats.record("a", 10.0, [row(100, 100)] * 5 + [copy] * 4 + [RowStat(2, "2", 0, 0, 0, "invalid_json", 0.0)])
    got = predict(stats, {}, 1000, {"a": 1}, {})
    assert got.input_tokens.value == 50_000 and got.sample_errors == {"invalid_json": 1}
    assert "invalid_json 1" in printed(got) and json.dumps(got.as_json())


def test_a_sample_without_an_answer_is_refused_with_its_errors() -> None:
    stats = RunStats(["a"])
    stats.record("a", 1.0, [RowStat(0, "0", 0, 0, 0, "missing_prompt", 0.0)])
    with pytest.raises(JobRefused, match=r"of 1 sampled rows none was answered \(errors: missing_prompt 1\)"):
        predict(stats, {}, 10, {"a": 1}, {})
    with pytest.raises(JobRefused):
        predict(RunStats(["a"]), {}, 10, {"a": 1}, {})


@pytest.mark.parametrize(("freedom", "table"), [(1, 12.706), (2, 4.303), (3, 3.182), (10, 2.228), (1000, 1.962)])
def test_students_t(freedom: int, table: float) -> None:
    assert _student_t(freedom) == pytest.approx(table, rel=0.01)


def printed(prediction: Prediction) -> str:
    out = io.StringIO()
    print_prediction(Console(file=out, width=160), prediction)
    return out.getvalue()

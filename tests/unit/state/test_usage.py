"""Usage is exact to the token whatever is written twice and wherever a period is cut, and its costs add up."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from cluster.scheduling import ServiceWeights
from cluster.state import Grouping, Period, Spent, Store, UsageRecord, tenant_costs
from cluster.state.tables import UsageHourRow, UsageRow
from tests.unit.state.records import record

WEIGHTS = ServiceWeights()
HOUR_S, DAY_S = 3600, 86400
COUNTS = ("requests", "prompt_tokens", "cached_tokens", "output_tokens", "upstream_usd")
# Moments around the ends of hours and days, where sums of whole hours and single rows meet.
NEAR_ENDS = st.builds(
    lambda hour, step: math.nextafter(hour * HOUR_S, step) if step else float(hour * HOUR_S),
    st.integers(1, 50),
    st.sampled_from([0, math.inf, -math.inf]),
)
MOMENTS = st.one_of(NEAR_ENDS, st.floats(0, 50 * HOUR_S))
RECORDS = st.builds(
    lambda number, at_s, tenant, key, deployment, tokens: record(
        number, tenant=tenant, key_id=key, deployment=deployment, finished_at_s=at_s,
        prompt_tokens=tokens[0], cached_tokens=tokens[1], output_tokens=tokens[2], requests=1 + number % 3,
        upstream_usd=number % 4 / 4,
    ),
    st.integers(0, 30), MOMENTS, st.sampled_from("ab"), st.sampled_from("kl"), st.sampled_from("de"),
    st.tuples(*[st.integers(0, 2**31 - 1)] * 3),
)  # fmt: skip


def brute_force(records: dict[str, UsageRecord], by: tuple[str, ...], period: Period, tenant: str | None) -> Counter:
    """{(group, counter): sum}, from the records themselves."""
    found: Counter[tuple[object, str]] = Counter()
    for row in records.values():
        inside = period.since_s <= row.finished_at_s and (period.until_s is None or row.finished_at_s < period.until_s)
        if inside and tenant in (None, row.tenant):
            group = tuple(int(row.finished_at_s) // DAY_S * DAY_S if n == "day_s" else getattr(row, n) for n in by)
            for name in COUNTS:
                found[group, name] += getattr(row, name)
    return found


@given(
    batches=st.lists(st.lists(RECORDS, max_size=8), max_size=8),
    since_s=st.one_of(st.just(0.0), MOMENTS),
    until_s=st.one_of(st.none(), MOMENTS),
    tenant=st.sampled_from([None, "a"]),
    by=st.sampled_from([(), ("tenant",), ("key_id", "deployment"), ("day_s", "tenant"), ("day_s",)]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sums_are_those_of_the_records(
    store: Store,
    batches: list[list[UsageRecord]],
    since_s: float,
    until_s: float | None,
    tenant: str | None,
    by: tuple[str, ...],
) -> None:
    empty(store)
    first: dict[str, UsageRecord] = {}
    for batch in batches:
        store.add_usage(batch)
        for row in sorted(batch, key=lambda row: row.request_id):
            first.setdefault(row.request_id, row)
    period = Period(since_s, until_s)
    expected = brute_force(first, by, period, tenant) if until_s is None or since_s < until_s else Counter()
    found: Counter[tuple[object, str]] = Counter()
    for row in store.usage_sums(period, by, tenant):
        for name in COUNTS:
            found[tuple(row[n] for n in by), name] += row[name]
    assert found == expected


def empty(store: Store) -> None:
    with store.engine.begin() as connection:
        connection.execute(UsageRow.__table__.delete())
        connection.execute(UsageHourRow.__table__.delete())


def test_writers_that_repeat_each_other_count_once(store: Store, url: str) -> None:
    """Gateways that write the same records at the same time, in different order."""
    records = [record(n, tenant="ab"[n % 2], key_id=f"k{n % 5}", finished_at_s=n * 61.0) for n in range(120)]
    stores = [Store(url) for _ in range(4)]

    def write(writer: int) -> None:
        for start in range(0, 120, 30):
            batch = records[start : start + 30]
            stores[writer].add_usage(batch if writer % 2 else batch[::-1])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    for other in stores:
        other.close()
    (total,) = store.usage_sums(Period(), ())
    tokens = {"prompt_tokens": 1200, "cached_tokens": 480, "output_tokens": 840}
    assert total == {"requests": 120, **tokens, "upstream_usd": 0.0}
    with store.engine.connect() as connection:
        assert connection.scalar(select(func.sum(UsageHourRow.requests))) == 120


@pytest.fixture
def used(store: Store) -> Iterator[Store]:
    """Day 1: a and b share `d`, nobody uses `e`. Day 2: a alone. Of a's two keys, `l` is used on day 2."""
    store.touch_replica("r1", "m", "d", 3.6, DAY_S + 0.0, DAY_S + 1000.0)
    store.touch_replica("r2", "m", "d", 3.6, 2 * DAY_S - 500.0, 2 * DAY_S + 500.0)
    store.touch_replica("r3", "n", "e", 3.6, DAY_S + 0.0, DAY_S + 100.0)
    store.add_usage(
        [
            record(1, finished_at_s=DAY_S + 10.0),  # 6 uncached + 2 x 7 = 20 service
            record(2, tenant="b", output_tokens=27, finished_at_s=DAY_S + 20.5, request_class="semi_online"),  # 60
            record(3, key_id="l", finished_at_s=2 * DAY_S + 0.0),
        ]
    )
    yield store


def dollars(store: Store, by: Grouping | None, tenant: str | None = None, **period: float) -> dict[tuple, float]:
    lines = store.usage_lines(Period(**period), WEIGHTS, tenant, by)
    return {(line.tenant, line.group): round(line.usd, 9) for line in lines}


def test_every_day_is_split_among_those_who_used_it(used: Store) -> None:
    assert dollars(used, "day") == {
        ("a", DAY_S): 0.375,  # a quarter of 1500 s
        ("b", DAY_S): 1.125,
        ("a", 2 * DAY_S): 0.5,
        ("(idle)", DAY_S): 0.1,
    }


def test_a_period_is_split_as_one_whatever_it_is_grouped_by(used: Store) -> None:
    assert dollars(used, None) == {("a", None): 0.8, ("b", None): 1.2, ("(idle)", None): 0.1}
    assert dollars(used, "key", "a") == {("a", "k"): 0.4, ("a", "l"): 0.4}
    assert dollars(used, "class") == {("a", "online"): 0.8, ("b", "semi_online"): 1.2, ("(idle)", None): 0.1}
    assert dollars(used, "model") == {("a", "m"): 0.8, ("b", "m"): 1.2, ("(idle)", "n"): 0.1}
    assert dollars(used, "model", "b") == {("b", "m"): 1.2}


def test_replica_seconds_are_split_as_dollars_are(used: Store) -> None:
    lines = {line.tenant: line for line in used.usage_lines(Period(), WEIGHTS)}
    assert lines["a"].replica_seconds == pytest.approx(800) and lines["b"].replica_seconds == pytest.approx(1200)
    assert lines["(idle)"].replica_seconds == pytest.approx(100)
    assert lines["a"].usd_per_mtok == pytest.approx(0.8 / 34 * 1e6) and lines["(idle)"].usd_per_mtok is None


def test_a_period_cuts_the_lives_of_replicas(used: Store) -> None:
    assert dollars(used, None, since_s=2 * DAY_S, until_s=2 * DAY_S + 100.0) == {("a", None): 0.1}
    lives = used.replica_seconds(DAY_S, DAY_S + 10.0)
    assert sorted(lives, key=lambda life: str(life["deployment"])) == [
        {"deployment": "d", "model": "m", "day_s": None, "seconds": 10.0, "usd": pytest.approx(0.01)},
        {"deployment": "e", "model": "n", "day_s": None, "seconds": 10.0, "usd": pytest.approx(0.01)},
    ]


def test_what_was_spent_today_begins_at_midnight(used: Store) -> None:
    assert used.spent_today(DAY_S + 3.0) == {"a": Spent(34, pytest.approx(0.8)), "b": Spent(37, pytest.approx(1.2))}
    assert used.spent_today(2 * DAY_S + 7000.0) == {"a": Spent(17, pytest.approx(0.5))}
    assert used.spent_today(3 * DAY_S) == {}


def test_today_is_read_from_sums_alone(store: Store) -> None:
    """The rows of the day may be millions; they are gone here, and nothing is missed."""
    now_s = time.time()
    store.add_usage([record(1, finished_at_s=now_s)])
    with store.engine.begin() as connection:
        connection.execute(UsageRow.__table__.delete())
    assert store.spent_today(now_s)["a"].tokens == 17


def test_what_an_upstream_costs_is_its_users(used: Store) -> None:
    """Replicas cost a 0.8 and b 1.2 as without it: what is paid upstream is added, and split among nobody."""
    upstream = {"deployment": "upstream:up", "model": "frontier", "finished_at_s": DAY_S + 30.0}
    used.add_usage([record(4, upstream_usd=0.5, **upstream), record(5, tenant="b", upstream_usd=0.25, **upstream)])
    assert dollars(used, None) == {("a", None): 1.3, ("b", None): 1.45, ("(idle)", None): 0.1}
    assert dollars(used, "model", "b") == {("b", "m"): 1.2, ("b", "frontier"): 0.25}
    (line,) = [line for line in used.usage_lines(Period(), WEIGHTS, "b", "model") if line.group == "frontier"]
    assert (line.upstream_usd, line.requests, line.replica_seconds) == (0.25, 1, 0.0)
    assert used.spent_today(DAY_S + 40.0)["b"].usd == pytest.approx(1.45)
    costs = tenant_costs(used.usage_totals(), used.replica_seconds(), WEIGHTS)
    paid = {(cost.tenant, cost.deployment): round(cost.usd, 9) for cost in costs}
    assert paid["a", "upstream:up"] == 0.5 and paid["b", "upstream:up"] == 0.25 and paid["a", "d"] == 0.8

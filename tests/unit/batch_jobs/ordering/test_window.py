"""Every row exactly once whatever happens, within the bounds, units whole, order kept where nothing is to be gained."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_jobs.ordering import window as window_module
from batch_jobs.ordering.output_scale import OutputScale
from batch_jobs.ordering.prefix_tree import Sharing
from batch_jobs.ordering.window import Window

from .models import LARGE, numbers, row, served

SMALL = Sharing(min_shared_chars=4, block_chars=2, unit_rows=4)
ENGINE = st.sampled_from(["a", "b", "c"])
STEP = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 12)),
    st.tuples(st.just("take"), ENGINE, st.integers(0, 9)),
    st.tuples(st.just("put_back"), st.integers(1, 5)),
    st.tuples(st.just("forget"), ENGINE),
    st.tuples(st.just("observe"), st.integers(0, 100)),
    st.tuples(st.just("close")),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=60), st.booleans(), st.integers(0, 10_000), st.sampled_from([None, 0, 5, 1000]))
def test_every_row_is_taken_exactly_once(steps: list[tuple], order: bool, seed: int, slots: int | None):
    window = Window(10_000, LARGE, order=order, sharing=SMALL, slots=slots)
    chance = random.Random(seed)
    held: list = []
    waiting, added, closed = 0, 0, False
    for kind, *args in steps:
        if kind == "add" and not closed:
            new = [
                row(added + n, "".join(chance.choices("ab", k=chance.choice((0, 5, 9)))), output=chance.randint(0, 300))
                for n in range(args[0])
            ]
            window.add(new)
            added, waiting = added + len(new), waiting + len(new)
        elif kind == "take":
            taken = window.take(*args)
            assert len(taken) <= args[1]
            assert taken or not args[1] or not waiting  # never idle while a row waits
            held += taken
            waiting -= len(taken)
        elif kind == "put_back":
            back, held = held[: args[0]], held[args[0] :]
            window.put_back(back)
            waiting += len(back)
        elif kind == "forget":
            window.forget(args[0])
        elif kind == "observe":
            window.observe(100, 100, args[0])
        elif kind == "close":
            window.close()
            closed = True
        assert len(window) == waiting
        assert window.size_bytes >= waiting
    while rest := window.take("z", 3):
        held += rest
    assert sorted(numbers(held)) == list(range(added))
    assert len(window) == window.size_bytes == 0


def test_uniform_rows_keep_the_order_of_the_input_over_engines_and_plans():
    window, order = Window(40, LARGE), []
    rows = [row(n) for n in range(500)]
    while len(order) < 500:
        fed = len(order) + len(window)
        window.add(rows[fed : fed + window.room])
        order += window.take("ab"[len(order) % 2], 1 + len(order) % 3)
    assert numbers(order) == list(range(500))


def test_fifo_mode_is_first_in_first_out():
    rows = [row(n, "p" * 300 * (n % 2), output=(n * 37) % 500) for n in range(200)]
    assert numbers(served(rows, Window(30, LARGE, order=False))) == list(range(200))


def test_the_window_is_bounded_by_rows_and_by_bytes():
    window = Window(100, 3000)
    window.add([row(n, "x" * 99) for n in range(10)])  # 100 bytes each
    assert window.size_bytes == 1000 and window.room == 20
    window.add([row(n, "x" * 98) for n in range(10, 30)])  # 100 as well: numbers of two digits
    assert window.room == 0
    window.take("e", 5)
    assert window.room == 5
    assert Window(7, LARGE).room == 7
    assert Window(7, 10).room == 1  # a row larger than the window still runs


def test_rows_put_back_come_first_and_may_exceed_the_bound():
    window = Window(4, LARGE)
    window.add([row(n) for n in range(4)])
    lost = window.take("a", 2)
    window.add([row(n) for n in (4, 5)])
    window.put_back(lost)
    assert (len(window), window.room) == (6, 0)
    assert numbers(window.take("b", 3)) == [0, 1, 2]


def test_adding_after_close_is_refused():
    window = Window(4, LARGE)
    window.close()
    with pytest.raises(ValueError, match="closed"):
        window.add([row(0)])
    window.put_back([row(0)])
    assert numbers(window.take("a", 1)) == [0]


def shuffled_groups(groups: int, size: int, seed: int = 1) -> list:
    chance = random.Random(seed)
    names = [group for group in range(groups) for _ in range(size)]
    chance.shuffle(names)
    return [row(n, f"{name:03d}".ljust(300, "-") + str(n)) for n, name in enumerate(names)]


def test_units_stay_whole_and_on_one_engine():
    window = Window(1000, LARGE, slots=0)
    window.add(shuffled_groups(20, 6))
    chance, owners, order = random.Random(2), {}, {"a": [], "b": [], "c": []}
    for _ in range(100):  # until the list is nearly empty, before anything is stolen
        engine = chance.choice("abc")
        for taken in window.take(engine, 1):
            group = taken.prefix[:3]
            assert owners.setdefault(group, engine) == engine
            order[engine].append(group)
    for groups in order.values():
        assert len(set(groups)) == 1 + sum(one != other for one, other in pairwise(groups))  # none is come back to


def test_a_group_that_straddles_two_plans_comes_together():
    rows = shuffled_groups(4, 2)
    window = Window(1000, LARGE)
    window.add([row(n, f"{n:03d}".ljust(300, "-") + "first") for n in range(4)])
    assert numbers(window.take("e", 1)) == [0]
    window.add([row(10 + n, f"{n:03d}".ljust(300, "-") + "later") for n in range(4)])
    order = [taken.prefix[:3] for taken in window.take("e", len(rows))]
    assert order == ["001", "001", "002", "002", "003", "003", "000"]


def test_new_rows_join_the_unit_that_an_engine_has_open():
    def of(number: int) -> object:
        return row(number, "shared".ljust(300, "-") + str(number))

    window = Window(1000, LARGE)
    window.add([of(0), of(1), of(2), row(3), row(4)])
    assert numbers(window.take("a", 1)) == [0]
    window.add([of(n) for n in range(5, 10)])
    assert numbers(window.take("b", 3)) == [3, 4, 6]  # then b steals half of what a has open
    assert numbers(window.take("a", 3)) == [1, 2, 5]


def test_old_rows_are_not_overtaken_for_ever():
    """The middle of every plan would wait until the input ends if only the ends of new plans were served."""
    chance = random.Random(3)
    rows = [row(n, output=chance.choice((1, 30, 900))) for n in range(4000)]
    window = Window(200, LARGE, slots=0)
    waited = max(place - each.number for place, each in enumerate(served(rows, window)))
    assert waited <= 3 * 200


def test_an_idle_engine_takes_half_of_the_largest_open_unit():
    window = Window(100, LARGE)
    window.add([row(n, "p" * 300 + str(n)) for n in range(9)])
    assert numbers(window.take("a", 1)) == [0]
    assert numbers(window.take("b", 1)) == [5]
    assert numbers(window.take("b", 9)) == [6, 7, 8, 3, 4, 2, 1]  # its half, then half after half
    assert window.take("a", 1) == []


def test_open_units_of_a_lost_engine_go_to_others():
    window = Window(100, LARGE)
    window.add([row(n, "p" * 300 + str(n)) for n in range(6)])
    assert numbers(window.take("a", 2)) == [0, 1]
    window.forget("a")
    assert numbers(window.take("b", 9)) == [2, 3, 4, 5]


def test_long_outputs_go_first_once_the_input_has_ended():
    rows = [row(n, output=output) for n, output in enumerate((5, 900, 20, 300, 5, 60))]
    window = Window(100, LARGE, slots=100)
    window.add(rows)
    window.close()
    assert [taken.output_tokens for taken in window.take("e", 9)] == [900, 300, 60, 20, 5, 5]


def test_in_the_tail_a_unit_stays_whole_when_its_sharing_is_worth_it():
    def tail(spread: int) -> list[float]:
        shared = [row(n, "p" * 400 + str(n), output=10 + spread * n) for n in range(2)]  # 400 characters: 100 tokens
        window = Window(100, LARGE, slots=100)
        window.add([*shared, row(2, output=50), row(3, output=15)])
        window.close()
        return [taken.output_tokens for taken in window.take("e", 9)]

    assert tail(90) == [100, 10, 50, 15]
    assert tail(200) == [210, 50, 15, 10]


@pytest.mark.parametrize("step", [1, 7])
def test_each_row_is_planned_a_few_times_at_most(step: int, monkeypatch: pytest.MonkeyPatch):
    planned = []
    plan_units = window_module.plan_units

    def counted(rows: list, *args: object) -> list:
        planned.append(len(rows))
        return plan_units(rows, *args)

    monkeypatch.setattr(window_module, "plan_units", counted)
    chance = random.Random(4)
    rows = [
        row(n, f"{chance.randint(0, 40)}".ljust(300, "-") + str(n), output=chance.randint(1, 500)) for n in range(3000)
    ]
    assert len(served(rows, Window(500, LARGE), step=step)) == 3000
    assert sum(planned) < 3 * 3000


def test_output_estimates_follow_what_was_seen():
    scale = OutputScale()
    assert scale.factor == 1
    scale.observe(1000, 100)
    assert 0.9 < scale.factor < 1  # one row is not enough to tell
    for _ in range(1000):
        scale.observe(1000, 100)
    assert scale.factor == pytest.approx(0.1, abs=0.02)
    scale.observe(0, 5)
    for _ in range(100_000):
        scale.observe(1000, 0)
    assert scale.factor >= 0.01

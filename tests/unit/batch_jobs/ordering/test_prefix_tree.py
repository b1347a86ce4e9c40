"""Which rows come together, where groups are cut, and what order they have."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from batch_jobs.input.prepared import Prepared
from batch_jobs.ordering.density import density, density_class
from batch_jobs.ordering.prefix_tree import Costs, Piece, Sharing, order_units, shared_chars

from .models import row

SMALL = Sharing(min_shared_chars=4, block_chars=2, unit_rows=4)


def pieces(rows: list[Prepared], sharing: Sharing = SMALL) -> list[Piece]:
    return order_units(rows, Costs.of(rows), sharing)


def members(rows: list[Prepared], sharing: Sharing = SMALL) -> list[list[int]]:
    return [piece.members for piece in pieces(rows, sharing)]


def test_density_falls_with_output_and_pooling_rows_are_compute_bound():
    assert density(100, 500) < density(100, 50) < density(100, 1) < density(100, 0) < float("inf")
    assert density(1000, 0) > density(1, 1)
    assert density(0, 0) > 0  # an estimate of nothing still has a place


def test_a_rate_within_a_quarter_octave_is_the_same_class():
    assert density_class(1.00, 1.0) == density_class(1.18, 1.0) < density_class(1.20, 1.0)
    assert density_class(3.0, 7.0) == density_class(300.0, 700.0)


@given(st.text("ab", max_size=40), st.text("ab", max_size=40), st.integers(1, 7))
def test_common_prefix_is_exact_to_the_block(one: str, other: str, block: int):
    exact = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert shared_chars(one, other, 0, block) == exact // block * block


def test_rows_of_a_prefix_are_one_unit_and_short_sharing_does_not_count():
    rows = [row(0, "aaaa1"), row(1, "bbbb1"), row(2, "aaaa2"), row(3, "bbx"), row(4, "bbbb2"), row(5, "bby")]
    assert members(rows) == [[0, 2], [1, 4], [3, 5]]
    assert [piece.shared_chars for piece in pieces(rows)] == [4, 4, 0]


def test_a_group_is_cut_where_the_least_is_shared():
    rows = [row(n, "aaaa" + "xy"[n % 2] * 8 + str(n)) for n in range(6)]
    assert members(rows) == [[0, 2, 4], [1, 3, 5]]
    assert [piece.shared_chars for piece in pieces(rows)] == [12, 12]


def test_subtrees_stay_whole_when_children_are_sorted_by_density():
    long = [row(n, "aaaa" + "x" * 8 + str(n), output=output) for n, output in enumerate((1000, 1))]
    middle = [row(n, "aaaa" + "y" * 8 + str(n), output=output) for n, output in ((2, 100), (3, 90))]
    assert members(middle + long) == [[2, 3, 0, 1]]  # places: x (most memory work) before y, each together


def test_memory_bound_units_come_first_and_equals_keep_the_order_of_the_input():
    rows = [row(0, output=1), row(1, output=500), row(2, output=1), row(3, output=500)]
    assert members(rows) == [[1, 3], [0, 2]]
    uniform = [row(n, "abc"[n % 3]) for n in range(50)]
    assert members(list(reversed(uniform))) == [list(reversed(range(50)))]  # by number, not by arrival


def test_only_the_first_row_of_a_prefix_pays_for_it():
    rows = [row(n, "p" * 400 + str(n), prompt=101, output=1) for n in range(3)]
    costs = Costs.of(rows)
    order_units(rows, costs, Sharing(block_chars=16))
    assert costs.compute == [102, 2, 2]


def test_deep_trees_need_no_recursion():
    rows = [row(n, "a" * (n + 4)) for n in range(5000)]
    found = members(rows, Sharing(min_shared_chars=4, block_chars=1, unit_rows=8))
    assert sorted(place for unit in found for place in unit) == list(range(5000)) and max(map(len, found)) == 8


@given(st.lists(st.text("ab", max_size=14), max_size=60), st.integers(1, 9), st.integers(0, 99))
def test_every_row_is_in_one_unit_that_shares_what_it_says(prefixes: list[str], unit_rows: int, seed: int):
    outputs = random.Random(seed)
    rows = [row(n, prefix, output=outputs.randint(0, 300)) for n, prefix in enumerate(prefixes)]
    found = pieces(rows, Sharing(4, 2, unit_rows))
    assert sorted(place for piece in found for place in piece.members) == list(range(len(rows)))
    for piece in filter(lambda piece: piece.shared_chars, found):
        assert len(piece.members) <= unit_rows
        assert len({prefixes[place][: piece.shared_chars] for place in piece.members}) == 1
    heads = [prefixes[piece.members[0]][:4] for piece in found if piece.shared_chars]
    assert len(set(heads)) == 1 + sum(a != b for a, b in pairwise(heads)) if heads else True  # a group is contiguous

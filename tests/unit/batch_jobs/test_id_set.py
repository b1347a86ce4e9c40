"""Sets of ids by digest, and digests that occur more than once."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from batch_jobs.input.id_set import IdSet, id_digest, repeated

IDS = st.lists(st.text(min_size=1, max_size=3), max_size=30)


@given(inside=IDS, asked=IDS)
def test_membership_is_that_of_a_set(inside: list[str], asked: list[str]) -> None:
    ids = IdSet(inside)
    assert len(ids) == len(set(inside))
    assert ids.contains_many(asked).tolist() == [row_id in set(inside) for row_id in asked]
    assert all(row_id in ids for row_id in inside)


def test_lone_surrogates_have_digests() -> None:
    assert "\ud800" in IdSet(iter(["\ud800"]))


def digests(*halves: tuple[int, int]) -> bytearray:
    return bytearray(b"".join(struct.pack("<QQ", *pair) for pair in halves))


def test_digests_that_agree_in_one_half_are_different() -> None:
    ids = IdSet()
    ids._high, ids._low = (np.array(half, dtype="<u8") for half in ([1, 1, 1, 2], [3, 5, 7, 3]))
    asked = digests((1, 7), (1, 6), (2, 7), (2, 3), (0, 3), (1, 3))
    assert ids.contains_digests(asked).tolist() == [True, False, False, True, False, True]
    firsts, extra = repeated(digests((1, 1), (1, 2), (1, 1), (2, 1)))
    assert (firsts.tolist(), extra) == ([0], 1)
    assert repeated(digests((1, 1), (1, 2), (2, 1)))[1] == 0


@given(ids=IDS)
def test_repeated_ids_are_found_where_they_first_occur(ids: list[str]) -> None:
    firsts, extra = repeated(bytearray(b"".join(map(id_digest, ids))))
    assert firsts.tolist() == sorted(ids.index(row_id) for row_id in {x for x in ids if ids.count(x) > 1})
    assert extra == len(ids) - len(set(ids))

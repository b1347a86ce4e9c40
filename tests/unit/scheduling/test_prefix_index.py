"""The approximate prefix tree: finds what was given, stays small, forgets the oldest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.scheduling.prefix_index import BLOCKS_USED, PrefixIndex


def chain(*words: int) -> tuple[int, ...]:
    """Chained hashes: each stands for all words before it."""
    return tuple(hash(words[: end + 1]) for end in range(len(words)))


PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=30)


@given(PROMPTS, st.lists(st.integers(0, 2), max_size=9), st.integers(1, 3))
def test_the_longest_common_beginning_is_found(prompts: list[list[int]], asked: list[int], replicas: int) -> None:
    index = PrefixIndex()
    given_to: dict[str, list[list[int]]] = {}
    for number, prompt in enumerate(prompts):
        replica = f"r{number % replicas}"
        index.add(replica, chain(*prompt))
        given_to.setdefault(replica, []).append(prompt)

    def common(one: list[int], other: list[int]) -> int:
        return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

    true = {replica: max(common(asked, prompt) for prompt in mine) for replica, mine in given_to.items()}
    assert {replica: index.matched(replica, chain(*asked)) for replica in given_to} == true
    longest = max(true.values())
    best = {replica for replica, blocks in true.items() if blocks == longest and longest}
    assert set(index.holders(chain(*asked))) == best


@given(PROMPTS, st.integers(1, 12))
def test_what_is_kept_of_a_chain_is_a_beginning_of_it(prompts: list[list[int]], blocks_kept: int) -> None:
    """Else halving would not find its end."""
    index = PrefixIndex(blocks_kept)
    for prompt in prompts:
        index.add("r", chain(*prompt))
        assert len(index._seen["r"]) <= blocks_kept
        assert index._holders.keys() == index._seen["r"].keys()
    for prompt in prompts:
        there = [block in index._seen["r"] for block in chain(*prompt)]
        assert there == sorted(there, reverse=True)
        assert index.matched("r", chain(*prompt)) == sum(there)


@pytest.mark.parametrize("prefix_blocks", [3, 2 * BLOCKS_USED])
def test_the_index_is_bounded_and_forgets_what_was_used_least_recently(prefix_blocks: int) -> None:
    index = PrefixIndex(blocks_kept=100)
    for number in range(500):
        index.add("r", tuple(range(1000 * number, 1000 * number + prefix_blocks)))
        index.add("r", (-1, -2))
    assert len(index._seen["r"]) <= 100 and len(index._holders) <= 100
    assert index.matched("r", (-1, -2, -3)) == 2, "used again and again"
    assert index.matched("r", (0, 1, 2)) == 0
    index.forget_replica("r")
    assert not index._holders and not index._seen and index.holders((-1, -2)) == []

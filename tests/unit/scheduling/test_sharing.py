"""Who gives way when the nodes are full: the longest idle first, only what is idle, only as much as is missing."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from cluster.scheduling import Claim, Neighbour
from cluster.scheduling.sharing import give_way


def claim(name: str, **fields: float) -> Claim:
    return Claim(name, "gpus", fields.pop("size", 1.0), **fields)  # type: ignore[arg-type]


def test_the_longest_idle_gives_and_no_more_than_is_missing() -> None:
    claims = [
        claim("needy", missing=2),
        claim("long", spare=1, spare_for_s=50.0),
        claim("short", spare=5, spare_for_s=10.0),
    ]
    assert give_way(claims, "gpus") == {"long": 1, "short": 1}
    assert give_way(claims, "other") == {}
    assert give_way(claims[1:], "gpus") == {}, "nobody misses anything"


def test_what_is_on_its_way_is_not_given_twice() -> None:
    assert give_way([claim("needy", missing=1), claim("giver", spare=3, giving=1)], "gpus") == {}


def test_small_replicas_make_room_for_a_large_one() -> None:
    assert give_way([claim("large", missing=1, size=4.0), claim("small", spare=9, size=1.0)], "gpus") == {"small": 4}


class Deployment:
    """One that has `placed` of `current` replicas, of which `needed` are needed."""

    def __init__(self, name: str, least: int = 0, start_s: float = 8.0) -> None:
        self.neighbour, self.blank = Neighbour(), Claim(name, "gpus", 1.0)
        self.least, self.start_s = least, start_s

    def says(self, now_s: float, needed: int, current: int, placed: int) -> Claim:
        return self.neighbour.claim(
            self.blank,
            needed=needed,
            wanted=current,
            current=current,
            placed=placed,
            least=self.least,
            start_s=self.start_s,
            now_s=now_s,
        )


def test_only_patience_makes_a_claim_and_only_lasting_idleness_meets_it() -> None:
    needy, giver = Deployment("needy"), Deployment("giver")
    assert needy.says(0, 2, 2, 1).missing == 0, "Ray may still be placing it"
    assert giver.says(0, 0, 2, 2).spare == 0
    for second in range(1, 8):
        asks, idles = needy.says(second, 2, 2, 1), giver.says(second, 0, 2, 2)
    assert asks.missing == 1 and idles.spare == 0, "it would take 8 s to come back"
    idles = giver.says(8, 0, 2, 2)
    assert idles.spare == 2 and giver.neighbour.give(idles, [asks], 8) == 1
    idles = giver.says(9, 0, 1, 1)
    assert idles.giving == 1 and giver.neighbour.give(idles, [asks], 9) == 0, "the room is not there yet"
    assert giver.says(30, 0, 1, 1).giving == 0


def test_work_ends_idleness_and_a_placed_replica_ends_the_claim() -> None:
    needy, giver = Deployment("needy"), Deployment("giver", least=1)
    needy.says(0, 2, 2, 1)
    giver.says(0, 1, 3, 3)
    assert needy.says(9, 2, 2, 2).missing == 0
    assert giver.says(9, 1, 3, 3).spare == 2, "never below its least"
    giver.says(10, 3, 3, 3)
    assert giver.says(11, 1, 3, 3).spare == 0
    assert needy.says(20, 1, 2, 1).missing == 0, "what is only kept is not missed"


claims_of_one_pool = st.lists(
    st.builds(
        claim,
        st.sampled_from("abcdefgh"),
        missing=st.integers(0, 4),
        spare=st.integers(0, 4),
        giving=st.integers(0, 4),
        spare_for_s=st.floats(0, 100),
        size=st.sampled_from([0.5, 1.0, 4.0]),
    ),
    unique_by=lambda one: one.deployment,
)


@given(claims_of_one_pool, st.randoms(use_true_random=False))
def test_all_come_to_the_same_answer_and_nobody_gives_what_is_in_use(claims: list[Claim], rng: random.Random) -> None:
    given_up = give_way(claims, "gpus")
    rng.shuffle(claims)
    assert give_way(claims, "gpus") == given_up
    by_name = {one.deployment: one for one in claims}
    assert all(0 < count <= by_name[name].spare and not by_name[name].missing for name, count in given_up.items())
    freed = sum(count * by_name[name].size for name, count in given_up.items())
    wanted = sum((one.missing - one.giving) * one.size for one in claims)
    assert not given_up or freed < wanted + max(one.size for one in claims), "no more than the last one has to be"

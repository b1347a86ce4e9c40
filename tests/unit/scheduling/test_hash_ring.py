"""The ring: the same everywhere, few keys move, nobody above its capacity."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cluster.scheduling.hash_ring import HashRing, capacity, session_key

NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=8, unique=True)
KEYS = [session_key("tenant", f"session-{number}") for number in range(3000)]


def ring_of(members: list[str]) -> HashRing:
    ring = HashRing()
    for member in members:
        ring.add(member)
    return ring


def owner(ring: HashRing, key: int) -> str:
    return next(ring.walk(key))


@given(NAMES, st.integers(0, 2**64 - 1), st.randoms())
def test_the_walk_names_everybody_once_whatever_the_order_they_came_in(
    members: list[str], key: int, rng: random.Random
) -> None:
    walk = list(ring_of(members).walk(key))
    assert sorted(walk) == sorted(members)
    rng.shuffle(members)
    assert list(ring_of(members).walk(key)) == walk


def test_a_member_that_comes_takes_its_share_and_moves_nothing_else() -> None:
    for size in (2, 4, 10):
        members = [f"replica-{number}" for number in range(size)]
        before, after = ring_of(members), ring_of([*members, "new"])
        moved = [key for key in KEYS if owner(before, key) != owner(after, key)]
        assert all(owner(after, key) == "new" for key in moved)
        assert len(moved) / len(KEYS) < 1.5 / (size + 1)
        after.remove("new")
        assert [owner(after, key) for key in KEYS] == [owner(before, key) for key in KEYS]


def test_shares_are_roughly_equal() -> None:
    ring = ring_of([f"replica-{number}" for number in range(8)])
    shares = Counter(owner(ring, key) for key in KEYS)
    assert len(shares) == 8 and max(shares.values()) < 1.5 * len(KEYS) / 8


def test_another_process_puts_a_session_at_the_same_place() -> None:
    code = "from cluster.scheduling.hash_ring import session_key; print(session_key('tenänt', 's'))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert int(told.stdout) == session_key("tenänt", "s") != session_key("other", "s")


@given(st.lists(st.integers(1, 64), min_size=1, max_size=12), st.integers(0, 500), st.floats(1.01, 3))
def test_somebody_is_always_below_its_capacity(slots: list[int], load: int, factor: float) -> None:
    """Whoever bears what: were all at their capacities, all together would bear more than there is."""
    assert sum(capacity(factor, load, mine, sum(slots)) for mine in slots) > load


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=400), st.integers(1, 8))
def test_no_member_gets_more_than_its_capacity(keys: list[int], size: int) -> None:
    ring = ring_of([f"r{number}" for number in range(size)])
    loads: Counter[str] = Counter()
    for total, key in enumerate(keys):
        most = capacity(1.25, total, 1, size)
        member = next(m for m in ring.walk(session_key("t", str(key))) if loads[m] < most)
        loads[member] += 1
        assert loads[member] <= 1.25 * (total + 1) / size + 1


def test_an_empty_ring_and_unknown_members() -> None:
    ring = HashRing()
    assert list(ring.walk(5)) == [] and len(ring) == 0
    ring.remove("nobody")
    ring.add("r")
    ring.add("r")
    assert list(ring.walk(2**64 - 1)) == ["r"] and "r" in ring and len(ring) == 1

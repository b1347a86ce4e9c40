"""Consistent hashing with bounded loads: where a session belongs that nobody remembers.

Each member owns `points_each` points of a ring; a key belongs to the owner of the first point at or after its own, and
if that one is over its capacity, to the next member clockwise (Mirrokni, Thorup, Zadimoghaddam, "Consistent hashing
with bounded loads", arXiv 1608.01350):

    capacity of a member = ceil(c * (total load + 1) * its slots / all slots)        c = 1.25

As c > 1, some member is always below its capacity. A member that comes or goes moves the keys of its own points only,
about 1/n of them. Hashes are BLAKE2b's: the same in every process, on every machine, after every restart.

Owns: the points. Must not know: loads, sessions, replicas' state.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Iterator

POINTS_EACH = 128
"""With so many the largest of ten members owns about a quarter more than its share."""


class HashRing:
    """Members on a ring. Changes are made when somebody walks next: each walk after one costs O(points of all), others
    O(log points) to the first member."""

    def __init__(self, points_each: int = POINTS_EACH) -> None:
        self._points_each = points_each
        self._members: set[str] = set()
        self._ring: list[tuple[int, str]] = []
        """By point, then by name: members with a common point are in the same order everywhere."""
        self._on_ring: set[str] = set()
        self._changed = False

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, member: str) -> bool:
        return member in self._members

    def add(self, member: str) -> None:
        """A known member is left alone."""
        if member not in self._members:
            self._members.add(member)
            self._changed = True

    def remove(self, member: str) -> None:
        if member in self._members:
            self._members.discard(member)
            self._changed = True

    def walk(self, key: int) -> Iterator[str]:
        """Every member once, clockwise from `key`: the owner first."""
        if self._changed:
            self._build()
        ring = self._ring
        start = bisect_left(ring, (key, ""))
        seen: set[str] = set()
        for place in range(start, start + len(ring)):
            owner = ring[place % len(ring)][1]
            if owner not in seen:
                seen.add(owner)
                yield owner
                if len(seen) == len(self._on_ring):
                    return

    def _build(self) -> None:
        gone, new = self._on_ring - self._members, self._members - self._on_ring
        ring = [entry for entry in self._ring if entry[1] not in gone] if gone else self._ring
        fresh = ((_hash(f"{member}\0{number}"), member) for member in new for number in range(self._points_each))
        self._ring = sorted([*ring, *sorted(fresh)])
        self._on_ring = set(self._members)
        self._changed = False


def session_key(tenant: str, session: str) -> int:
    """A session's place on every ring. Per tenant: a neighbour's session name must not steer mine."""
    return _hash(f"{tenant}\0{session}")


def capacity(load_factor: float, total_load: int, slots: int, all_slots: int) -> int:
    """Load below which a member with `slots` of `all_slots` takes one key more, while all bear `total_load`."""
    return math.ceil(load_factor * (total_load + 1) * slots / all_slots)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())

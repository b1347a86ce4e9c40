"""Routers to compare with, written from their published descriptions and apart from the code under test.

All but `SessionOnly` bind a request to a replica the moment it comes: it then waits in the engine. `SessionOnly` keeps
what does not find a slot in one line, first come first served.

- `RandomChoice`, `RoundRobin`, `LeastLoaded` (fewest requests under way): as routers ship them.
- `CacheAware`: SGLang's router (SMG). Loads unequal, `max - min > abs and max > rel * min`: the least loaded. Else the
  replica with the longest match in an approximate tree of the prompts it was given, if more than `threshold` of the
  prompt matches; else the least loaded. The tree takes every prompt, and here it never has to evict.
- `SessionOnly`: the session's last replica if it has a free slot, else the one with the fewest requests.

Must not know: engines' caches, true lengths.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from benchmarks.routing_sides.engine_model import Served
from benchmarks.routing_sides.workload import Request


class Loads:
    """Requests under way at each replica."""

    def __init__(self, replicas: int) -> None:
        self.of = [0] * replicas
        self._given = [0] * replicas

    def least(self) -> int:
        """Of equals the one that was given fewest so far."""
        return min(range(len(self.of)), key=lambda replica: (self.of[replica], self._given[replica]))

    def give(self, replica: int) -> None:
        self.of[replica] += 1
        self._given[replica] += 1

    def end(self, replica: int) -> None:
        self.of[replica] -= 1


class Rule(Protocol):
    def choose(self, request: Request, loads: Loads) -> int:
        """A replica for the request."""


class AtOnce:
    """Binds every request as it comes, by a rule."""

    def __init__(self, rule: Rule, replicas: int) -> None:
        self._rule = rule
        self._loads = Loads(replicas)
        self._bound: list[tuple[Request, int]] = []

    def submit(self, request: Request, now_s: float) -> None:
        replica = self._rule.choose(request, self._loads)
        self._loads.give(replica)
        self._bound.append((request, replica))

    def grants(self, now_s: float) -> list[tuple[Request, int]]:
        bound, self._bound = self._bound, []
        return bound

    def finished(self, served: Served, now_s: float) -> None:
        self._loads.end(served.replica)


class RandomChoice:
    def __init__(self, replicas: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self._replicas = replicas

    def choose(self, request: Request, loads: Loads) -> int:
        return self._rng.randrange(self._replicas)


class RoundRobin:
    def __init__(self, replicas: int) -> None:
        self._next = 0
        self._replicas = replicas

    def choose(self, request: Request, loads: Loads) -> int:
        self._next = (self._next + 1) % self._replicas
        return self._next


class LeastLoaded:
    def choose(self, request: Request, loads: Loads) -> int:
        return loads.least()


class CacheAware:
    """`threshold` of the prompt; unequal loads from a difference above `absolute` and a ratio above `relative` on."""

    def __init__(self, replicas: int, threshold: float, absolute: int, relative: float) -> None:
        self._threshold = threshold
        self._absolute = absolute
        self._relative = relative
        self._trees: list[set[int]] = [set() for _ in range(replicas)]

    def choose(self, request: Request, loads: Loads) -> int:
        most, least = max(loads.of), min(loads.of)
        replica = loads.least()
        if most - least <= self._absolute or most <= self._relative * least:
            matched = [self._matched(tree, request) for tree in self._trees]
            longest = max(matched)
            if request.blocks and longest / len(request.blocks) > self._threshold:
                replica = matched.index(longest)
        self._trees[replica].update(request.blocks)
        return replica

    @staticmethod
    def _matched(tree: set[int], request: Request) -> int:
        for place, block in enumerate(request.blocks):
            if block not in tree:
                return place
        return len(request.blocks)


class SessionOnly:
    """Sticky sessions in front of replicas that take `slots` requests each."""

    def __init__(self, replicas: int, slots: int) -> None:
        self._loads = Loads(replicas)
        self._slots = slots
        self._homes: dict[tuple[str, str], int] = {}
        self._line: deque[Request] = deque()

    def submit(self, request: Request, now_s: float) -> None:
        self._line.append(request)

    def grants(self, now_s: float) -> Iterator[tuple[Request, int]]:
        while self._line and min(self._loads.of) < self._slots:
            request = self._line.popleft()
            session = (request.tenant, request.session)
            replica = self._homes.get(session)
            if replica is None or self._loads.of[replica] >= self._slots:
                replica = self._loads.least()
            self._homes[session] = replica
            self._loads.give(replica)
            yield request, replica

    def finished(self, served: Served, now_s: float) -> None:
        self._loads.end(served.replica)

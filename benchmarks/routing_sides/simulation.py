"""One load through one router onto a number of engines. Owns: the clock and the order of events.

Must not know: how a router chooses, what an engine's work costs.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable
from typing import Protocol

from benchmarks.routing_sides.engine_model import Engine, ReplicaModel, Served
from benchmarks.routing_sides.workload import Load, Request


class Router(Protocol):
    """Chooses replicas, named by number from 0 on. It may bind a request at once or keep it waiting."""

    def submit(self, request: Request, now_s: float) -> None:
        """A request comes."""

    def grants(self, now_s: float) -> Iterable[tuple[Request, int]]:
        """Requests that begin now, and where."""

    def finished(self, served: Served, now_s: float) -> None:
        """A request has ended."""


class Simulation:
    """Runs until everything was answered."""

    def __init__(self, load: Load, router: Router, engine: Engine, replicas: int) -> None:
        self._load = load
        self._router = router
        self.replicas = [ReplicaModel(engine, load.block_tokens) for _ in range(replicas)]
        self.served: list[Served] = []
        self._arrived_at_s: dict[int, float] = {}
        self._rest = {chain[0].number: iter(chain[1:]) for chain in load.chains}
        """What is left of each chain, by the number of its request that is under way."""
        self._order = itertools.count()
        self._events: list[tuple[float, int, Request | int]] = [
            (chain[0].due_at_s, next(self._order), chain[0]) for chain in load.chains
        ]
        heapq.heapify(self._events)

    def run(self) -> list[Served]:
        """All requests in the order in which they ended."""
        while self._events:
            now_s, _, what = heapq.heappop(self._events)
            if isinstance(what, int):
                if self.replicas[what].next_at_s != now_s:
                    continue  # its plans have changed since
                _, ended = self.replicas[what].step()
                for served in ended:
                    self._end(served, now_s)
                self._expect(what)
            else:
                self._arrived_at_s[what.number] = now_s
                self._router.submit(what, now_s)
            for request, replica in self._router.grants(now_s):
                self.replicas[replica].give(
                    Served(request, replica, self._arrived_at_s.pop(request.number), now_s), now_s
                )
                self._expect(replica)
        if self._arrived_at_s:
            raise RuntimeError(f"{len(self._arrived_at_s)} requests were never given to a replica")
        return self.served

    def _end(self, served: Served, now_s: float) -> None:
        self.served.append(served)
        self._router.finished(served, now_s)
        rest = self._rest.pop(served.request.number)
        following = next(rest, None)
        if following is not None:
            self._rest[following.number] = rest
            at_s = max(following.due_at_s, now_s + self._load.reading_s)
            heapq.heappush(self._events, (at_s, next(self._order), following))

    def _expect(self, replica: int) -> None:
        at_s = self.replicas[replica].next_at_s
        if at_s < math.inf:
            heapq.heappush(self._events, (at_s, next(self._order), replica))

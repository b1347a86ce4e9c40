"""Replicas that come and go in front of the dispatcher's own queue: the same for every side, which only decides how
many there should be.

A replica is the engine of `benchmarks.routing` (continuous batching, chunked prefill); it takes `start_s` to come, give
or take a fifth. One that is taken away takes no more and leaves when it has ended what runs; those that are still
starting go first, then those that run least. A replica costs from its order until it has left.

Owns: the clock, the replicas, the order of events. Must not know: how a side decides.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.burst_sides.workload import Load
from benchmarks.routing_sides.engine_model import Engine, ReplicaModel, Served
from benchmarks.routing_sides.workload import Request
from cluster.scheduling import ClassPolicy, Replica, RequestQueue, Ticket, TokenUsage
from cluster.vocabulary import RequestClass

OWN = RequestClass.SEMI_ONLINE
DEPLOYMENT = "d"
BLOCK_TOKENS = 64
START_SPREAD = 0.2
LONGEST_TAIL_S = 900.0
"""After the last arrival, until what is left must have been served."""


@dataclass(slots=True)
class Machine:
    """One replica's life."""

    name: str
    number: int
    ordered_at_s: float
    ready_at_s: float
    model: ReplicaModel | None = None
    draining: bool = False
    left_at_s: float = math.inf


class Side(Protocol):
    """Decides how many replicas there should be."""

    period_s: float

    def desired(self, cluster: Cluster, now_s: float) -> int:
        """Asked every `period_s`."""

    def came(self, seconds: float) -> None:
        """A replica has come, after so many seconds."""


@dataclass
class Cluster:
    """One run."""

    load: Load
    side: Side
    engine: Engine
    start_s: float
    first: int
    """Replicas that are there at the beginning."""
    seed: int = 0
    machines: list[Machine] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue = RequestQueue({OWN: ClassPolicy(max_queued=10**9, max_wait_s=1e9)})
        self._rng = random.Random(self.seed)
        self._order = itertools.count()
        self._events: list[tuple[float, int, Request | Machine | None]] = []
        self._asked: dict[str, Request] = {}
        self._leases: dict[int, str] = {}
        self._there: list[Machine] = []

    # --- what sides look at ---------------------------------------------------------------------------------------

    def ordered(self) -> list[Machine]:
        """Those that are there or on their way, and not to leave."""
        return self._there

    def ready(self) -> list[Machine]:
        return [machine for machine in self._there if machine.model is not None]

    def requests(self) -> int:
        """That wait or run."""
        return len(self._asked)

    # --- the run --------------------------------------------------------------------------------------------------

    def run(self) -> list[Served]:
        """Until everything was served; requests in the order in which they ended."""
        for request in self.load.requests:
            self._at(request.due_at_s, request)
        for _ in range(self.first):
            self._ready(self._order_one(0.0), 0.0)
        self._at(0.0, None)
        ends_s = self.load.seconds + LONGEST_TAIL_S
        while self._events:
            now_s, _, what = heapq.heappop(self._events)
            if now_s > ends_s:
                raise RuntimeError(f"{self.requests()} requests were not served {LONGEST_TAIL_S:.0f} s after the last")
            if what is None:
                self._decide(now_s)
            elif isinstance(what, Request):
                self._submit(what, now_s)
            else:
                self._machine_event(what, now_s)
            self._grant(now_s)
        return self.served

    def replica_seconds(self, from_s: float, until_s: float) -> float:
        spans = ((max(from_s, m.ordered_at_s), min(until_s, m.left_at_s)) for m in self.machines)
        return sum(max(0.0, end_s - start_s) for start_s, end_s in spans)

    def most(self) -> int:
        """Largest number of replicas at once."""
        edges = [(m.ordered_at_s, 1) for m in self.machines] + [(m.left_at_s, -1) for m in self.machines]
        return max(itertools.accumulate(step for _, step in sorted(edges)))

    # --- inside ---------------------------------------------------------------------------------------------------

    def _at(self, at_s: float, what: Request | Machine | None) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), what))

    def _submit(self, request: Request, now_s: float) -> None:
        ticket = Ticket(str(request.number), "gateway", request.tenant, OWN, request.prompt_tokens, 4096, now_s)
        self._asked[ticket.ticket_id] = request
        if self.queue.submit(ticket, now_s) is not None:
            raise RuntimeError("the queue refused a request")

    def _grant(self, now_s: float) -> None:
        for lease in self.queue.grant(now_s):
            request = self._asked[lease.ticket.ticket_id]
            self._leases[request.number] = lease.lease_id
            machine = self.machines[int(lease.replica_id)]
            assert machine.model is not None
            machine.model.give(Served(request, machine.number, request.due_at_s, now_s), now_s)
            self._expect(machine)

    def _machine_event(self, machine: Machine, now_s: float) -> None:
        if machine.left_at_s <= now_s:
            return  # was taken away while it started
        if machine.model is None:
            self.side.came(now_s - machine.ordered_at_s)
            self._ready(machine, now_s)
        elif machine.model.next_at_s == now_s:  # else its plans have changed since
            for served in machine.model.step()[1]:
                self._end(served, now_s)
            self._expect(machine)
            self._leave_if_done(machine, now_s)

    def _end(self, served: Served, now_s: float) -> None:
        request = served.request
        del self._asked[str(request.number)]
        first_s = served.first_token_at_s - served.given_at_s
        usage = TokenUsage(request.prompt_tokens, 0, request.output_tokens, first_token_s=first_s)
        self.queue.release(self._leases.pop(request.number), usage, now_s)
        self.served.append(served)

    def _expect(self, machine: Machine) -> None:
        assert machine.model is not None
        if machine.model.next_at_s < math.inf:
            self._at(machine.model.next_at_s, machine)

    def _decide(self, now_s: float) -> None:
        desired = self.side.desired(self, now_s)
        there = list(self._there)
        for _ in range(desired - len(there)):
            self._at((machine := self._order_one(now_s)).ready_at_s, machine)
        leaving = sorted(there, key=lambda m: (m.model is not None, self.queue.taken_on(m.name), -m.number))
        for machine in leaving[: max(0, len(there) - desired)]:
            self._remove(machine, now_s)
        if now_s < self.load.seconds or self._asked:
            self._at(now_s + self.side.period_s, None)

    def _order_one(self, now_s: float) -> Machine:
        number = len(self.machines)
        spread = self._rng.uniform(1 - START_SPREAD, 1 + START_SPREAD)
        machine = Machine(str(number), number, now_s, now_s + self.start_s * spread)
        self.machines.append(machine)
        self._there.append(machine)
        return machine

    def _ready(self, machine: Machine, now_s: float) -> None:
        machine.model = ReplicaModel(self.engine, BLOCK_TOKENS)
        self.queue.put_replica(Replica(machine.name, DEPLOYMENT, (OWN,), self.engine.slots), now_s)

    def _remove(self, machine: Machine, now_s: float) -> None:
        self._there.remove(machine)
        if machine.model is None:
            machine.left_at_s = now_s
            return
        machine.draining = True
        self.queue.put_replica(Replica(machine.name, DEPLOYMENT, (OWN,), self.engine.slots, draining=True), now_s)
        self._leave_if_done(machine, now_s)

    def _leave_if_done(self, machine: Machine, now_s: float) -> None:
        if machine.draining and not self.queue.taken_on(machine.name):
            machine.left_at_s = now_s
            self.queue.remove_replica(machine.name, now_s)

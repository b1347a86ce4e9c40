"""One model's requests through the live policies onto simulated replicas.

The queue, the placement in it and the autoscaler are the dispatcher's own objects, called as the dispatcher and its
gateways call them: tickets and grants at once, progress four times a second, expiry five times, scaling twice. Not
simulated: the time that messages take, prepaid leases (a gateway's short cut to what the queue would grant), upstreams.
A replica that dies loses its cache; its requests come again with their old arrival time and go on from their tokens.

Order of one moment: engines, replicas' lives and timers as they were planned, then arrivals.

Owns: the clock and the order of events. Must not know: how a policy decides, what a step takes.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from cluster.config import TribesConfig
from cluster.policies import request_queue, scaling_bounds
from cluster.scheduling import BacklogScaler, Fleet, Lease, Refusal, Replica, StartTimes, Ticket, TokenUsage
from cluster.scheduling.prefix_index import BLOCK_TOKENS, BLOCKS_USED
from cluster.simulation.pool import ReplicaPool, SimReplica, State
from cluster.simulation.request import Request
from cluster.simulation.workload.traces import HASH_BLOCK_TOKENS

PROGRESS_S, EXPIRE_S, SCALE_S = 0.25, 0.2, 0.5
"""As gateways, the dispatcher's tick and Serve's policy do it."""
GATEWAY = "gateway"
LOST = "replica_lost"
_FINE = HASH_BLOCK_TOKENS // BLOCK_TOKENS
Event = tuple[float, int, Callable[[Any, float], None], Any]


class ClusterRun:
    """Runs until every request has ended, one way or the other."""

    def __init__(
        self,
        config: TribesConfig,
        model: str,
        requests: Sequence[Request],
        pools: dict[str, ReplicaPool],
        max_output_tokens: int,
        seed: int,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.pools = pools
        self.queue = request_queue(config, model)
        self._config = config
        self._model = model
        self._requests = requests
        self._max_output = max_output_tokens
        self._rng = random.Random(seed)
        self._progress = progress
        self._scalers = {name: BacklogScaler(scaling_bounds(pool.config)) for name, pool in pools.items()}
        self._starts = StartTimes()
        self._alive: dict[str, SimReplica] = {}
        self._tickets: dict[str, Request] = {}
        """Requests that wait in the queue, by ticket."""
        self._events: list[Event] = []
        self._order = 0
        self._open = len(requests)
        self.end_s = 0.0

    def run(self) -> None:
        for pool in self.pools.values():
            for _ in range(pool.config.replicas.min):
                self._ready(self._start(pool, 0.0, ready=True), 0.0)
        for period_s, timer in ((SCALE_S, self._scale), (EXPIRE_S, self._expire), (PROGRESS_S, self._report)):
            self._at(period_s, timer, period_s)
        requests, place = self._requests, 0
        next_s = requests[0].arrived_s if requests else math.inf
        events = self._events
        while self._open:
            if events[0][0] <= next_s:
                now_s, _, act, what = heapq.heappop(events)
                act(what, now_s)
            else:
                now_s = next_s
                self._submit(requests[place], now_s)
                self._grant(now_s)
                place += 1
                next_s = requests[place].arrived_s if place < len(requests) else math.inf
            self.end_s = now_s

    def _at(self, at_s: float, act: Callable[[Any, float], None], what: Any) -> None:
        self._order += 1
        heapq.heappush(self._events, (at_s, self._order, act, what))

    # --- requests -------------------------------------------------------------------------------------------------

    def _submit(self, request: Request, now_s: float, avoid: tuple[str, ...] = ()) -> None:
        ticket = Ticket(
            f"{request.number}.{request.attempts}",
            GATEWAY,
            request.tenant,
            request.request_class,
            request.prompt_tokens + request.produced,
            max(1, self._max_output - request.produced),
            request.arrived_s,
            session=request.session,
            avoid=avoid,
            prefix=self._prefix(request),
        )
        refusal = self.queue.submit(ticket, now_s)
        if refusal is not None:
            self._refused(request, refusal.code)
        else:
            self._tickets[ticket.ticket_id] = request
        self._dropped(self.queue.take_shed())

    def _prefix(self, request: Request) -> tuple[int, ...]:
        """The blocks cut into those of a gateway, where it looks at them."""
        if not request.blocks or not self._config.looks_at_prefixes(self._model, request.request_class):
            return ()
        return tuple(b * _FINE + piece for b in request.blocks[: BLOCKS_USED // _FINE] for piece in range(_FINE))

    def _dropped(self, dropped: list[tuple[Ticket, Refusal]]) -> None:
        for ticket, refusal in dropped:
            self._refused(self._tickets.pop(ticket.ticket_id), refusal.code)

    def _refused(self, request: Request, code: str) -> None:
        request.refusal = code
        self._ended()

    def _ended(self) -> None:
        self._open -= 1
        if self._progress is not None:
            self._progress(len(self._requests) - self._open)

    def _grant(self, now_s: float) -> None:
        for lease in self.queue.grant(now_s):
            self._begin(lease, now_s)

    def _begin(self, lease: Lease, now_s: float) -> None:
        request = self._tickets.pop(lease.ticket.ticket_id)
        replica = self._alive[lease.replica_id]
        replica.leases[request.number] = lease.lease_id, now_s
        request.replica = replica.number
        if request.given_s < 0:
            request.given_s = now_s
        replica.model.give(request, now_s)
        self._expect(replica)

    # --- engines --------------------------------------------------------------------------------------------------

    def _expect(self, replica: SimReplica) -> None:
        end_s = replica.model.end_s
        if end_s != replica.expected_s:
            replica.expected_s = end_s
            if end_s < math.inf:
                self._at(end_s, self._step, replica)

    def _step(self, replica: SimReplica, now_s: float) -> None:
        if replica.model.end_s != now_s or replica.state is State.GONE:
            return  # its plan has changed since
        ended = replica.model.step()
        for request in ended:
            lease_id, granted_s = replica.leases.pop(request.number)
            seen = request.first_token_s >= granted_s  # else another replica gave the first token
            usage = TokenUsage(
                request.prompt_tokens,
                request.cached_tokens,
                request.output_tokens,
                first_token_s=request.first_token_s - granted_s if seen else None,
            )
            self.queue.release(lease_id, usage, now_s)
            self._ended()
        self._expect(replica)
        if replica.state is State.DRAINING and replica.model.idle:
            self._stop(replica, now_s)
        if ended:
            self._grant(now_s)

    # --- replicas -------------------------------------------------------------------------------------------------

    def _start(self, pool: ReplicaPool, now_s: float, ready: bool = False) -> SimReplica:
        replica = pool.start(now_s, ready=ready)
        self._alive[replica.replica_id] = replica
        return replica

    def _ready(self, replica: SimReplica, now_s: float) -> None:
        if replica.state is not State.STARTING:
            return  # not wanted any more
        replica.state = State.READY
        if replica.ready_s > replica.started_s:
            self._starts.learn(replica.pool.name, replica.rung.name, replica.ready_s - replica.started_s)
        pool = replica.pool
        pool.changed(now_s)
        if pool.mean_time_to_failure_s is not None:
            self._at(now_s + self._rng.expovariate(1 / pool.mean_time_to_failure_s), self._fail, replica)
        self._put(replica, now_s)
        self._grant(now_s)

    def _put(self, replica: SimReplica, now_s: float, draining: bool = False) -> None:
        config = replica.pool.config
        known = Replica(replica.replica_id, replica.pool.name, tuple(config.serves), config.max_running)
        known.draining = draining
        self.queue.put_replica(known, now_s)

    def _fail(self, replica: SimReplica, now_s: float) -> None:
        if replica.state is not State.GONE:
            replica.pool.failures += 1
            self._lose(replica, now_s)

    def _lose(self, replica: SimReplica, now_s: float) -> None:
        """It dies with requests on it."""
        if replica.state is State.GONE:
            return
        lost = replica.model.abandon(now_s)
        self._stop(replica, now_s)
        for request in lost:
            self.queue.release(replica.leases.pop(request.number)[0], None, now_s)
            request.attempts += 1
            gateway = self._config.gateway
            if request.attempts > (gateway.max_continuations + 1 if request.produced else gateway.max_attempts):
                self._refused(request, LOST)
            else:
                self._submit(request, now_s, (replica.replica_id,))
        self._grant(now_s)

    def _stop(self, replica: SimReplica, now_s: float) -> None:
        if replica.state in (State.READY, State.DRAINING):
            self.queue.remove_replica(replica.replica_id, now_s)
        replica.pool.end(replica, now_s)
        del self._alive[replica.replica_id]

    # --- timers ---------------------------------------------------------------------------------------------------

    def _scale(self, period_s: float, now_s: float) -> None:
        for name, pool in self.pools.items():
            own, guests = pool.config.own_class, self._config.guests_of(name)
            current = pool.current
            demand = self.queue.demand(name, own, now_s, guests)
            fleet = self._fleet(pool, now_s)
            wanted = self._scalers[name].decide(demand, current, now_s, fleet).replicas
            for _ in range(wanted - current):
                replica = self._start(pool, now_s)
                self._at(replica.ready_s, self._ready, replica)
            for replica in pool.to_stop(current - wanted) if wanted < current else ():
                self._drain(replica, now_s)
        self._at(now_s + period_s, self._scale, period_s)

    def _fleet(self, pool: ReplicaPool, now_s: float) -> Fleet:
        """As the dispatcher sees it: what a start takes is known from those that have come."""
        start_s = self._starts.expected_s(pool.name)
        states = [replica.state for replica in pool.alive.values()]
        coming = (r.started_s for r in pool.alive.values() if r.state is State.STARTING)
        coming_in_s = tuple(max(0.0, start_s - (now_s - started_s)) for started_s in coming)
        return Fleet(states.count(State.READY), coming_in_s, start_s)

    def _drain(self, replica: SimReplica, now_s: float) -> None:
        if replica.state is State.STARTING or replica.model.idle:
            self._stop(replica, now_s)
            return
        replica.state = State.DRAINING
        replica.pool.changed(now_s)
        self._put(replica, now_s, draining=True)
        self._at(now_s + replica.pool.config.replicas.drain_timeout_s, self._lose, replica)

    def _expire(self, period_s: float, now_s: float) -> None:
        self._dropped(self.queue.expire(now_s))
        self._grant(now_s)
        self._at(now_s + period_s, self._expire, period_s)

    def _report(self, period_s: float, now_s: float) -> None:
        for replica in self._alive.values():
            for request, produced in replica.model.progress(now_s):
                self.queue.progress(replica.leases[request.number][0], produced, now_s)
        self._at(now_s + period_s, self._report, period_s)

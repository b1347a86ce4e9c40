"""The queue under test, as the engine model sees it. See `engine_model.Policy`.

It is `cluster.scheduling.RequestQueue`, the object that the dispatcher runs, with one replica that has places enough:
what binds is the engine model's KV pool. The engine asks for one lease at a time and, like a live engine with a buffer
of one, holds a request that was granted and does not fit yet; so ours decides one request earlier than its rivals do.
Progress is reported four times a second, as gateways report it, and the queue never learns an output's length before
its end: every ticket names the same maximum.

Owns: the translation. Must not know: what the queue does inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.fairness_sides.engine_model import Running
from benchmarks.fairness_sides.workload import Request
from cluster.scheduling import ClassPolicy, Lease, Replica, RequestQueue, TenantLimits, TenantPolicy, Ticket, TokenUsage
from cluster.vocabulary import RequestClass

CLASS = RequestClass.ONLINE
MAX_OUTPUT_TOKENS = 1024
PLACES = 10_000
UNBOUNDED = 10**9
PROGRESS_S = 0.25


class Ours:
    """One request class. Without `max_concurrent`, of every tenant, only the order is under test."""

    def __init__(self, weights: Mapping[str, float] | None = None, max_concurrent: int | None = None) -> None:
        self._queue = RequestQueue({CLASS: ClassPolicy(max_queued=UNBOUNDED, max_wait_s=UNBOUNDED)})
        self._queue.put_replica(Replica("engine", "engine", (CLASS,), PLACES), 0.0)
        self._weights = weights or {}
        self._limits = TenantLimits(max_concurrent=max_concurrent)
        self._known: set[str] = set()
        self._requests: dict[str, Request] = {}
        self._leases: dict[int, str] = {}
        self._buffer: Lease | None = None
        self._reported_at_s = 0.0

    def arrive(self, request: Request, now_s: float) -> bool:
        ticket = Ticket(
            ticket_id=str(request.number), owner="engine", tenant=request.tenant, request_class=CLASS,
            prompt_tokens=request.prompt_tokens, max_output_tokens=max(MAX_OUTPUT_TOKENS, request.output_tokens),
            arrived_at_s=request.arrived_at_s,
        )  # fmt: skip
        self._requests[ticket.ticket_id] = request
        if request.tenant not in self._known:
            self._known.add(request.tenant)
            policy = TenantPolicy(self._weights.get(request.tenant, 1.0), self._limits)
            self._queue.set_tenant(request.tenant, policy, now_s)
        return self._queue.submit(ticket, now_s) is None

    def head(self, now_s: float) -> Request | None:
        if self._buffer is None:
            self._buffer = next(iter(self._queue.grant(now_s, max_leases=1)), None)
        return self._requests[self._buffer.ticket.ticket_id] if self._buffer else None

    def admit(self, request: Request, now_s: float) -> None:
        assert self._buffer is not None
        self._leases[request.number] = self._buffer.lease_id
        self._buffer = None

    def produced(self, running: Sequence[Running], now_s: float) -> None:
        if now_s < self._reported_at_s + PROGRESS_S:
            return
        self._reported_at_s = now_s
        for one in running:
            self._queue.progress(self._leases[one.request.number], one.produced, now_s)

    def finish(self, request: Request, now_s: float) -> None:
        usage = TokenUsage(request.prompt_tokens, 0, request.output_tokens)
        assert self._queue.release(self._leases.pop(request.number), usage, now_s)

"""The dispatcher's own queue as a router. Owns: the calls that gateways would make. Must not know: how it decides."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.routing_sides.engine_model import Served
from benchmarks.routing_sides.workload import Request
from cluster.scheduling import ClassPolicy, QueuePolicy, Replica, RequestQueue, RoutingPolicy, Ticket, TokenUsage
from cluster.vocabulary import RequestClass

ONLINE = RequestClass.ONLINE


class Ours:
    """`RequestQueue` with `slots` leases a replica. As by gateways it is told how long prompts are, their sessions
    unless clients name none, hashes with `prefix`, and at the end the usage and the time to the first token."""

    def __init__(
        self,
        replicas: int,
        slots: int,
        *,
        prefix: bool = False,
        session: bool = True,
        routing: RoutingPolicy | None = None,
    ) -> None:
        policy = QueuePolicy(routing=routing or RoutingPolicy())
        self.queue = RequestQueue({ONLINE: ClassPolicy(max_queued=10**9, max_wait_s=1e9)}, policy=policy)
        for number in range(replicas):
            self.queue.put_replica(Replica(str(number), "d", (ONLINE,), slots), 0.0)
        self._prefix = prefix
        self._session = session
        self._waiting: dict[str, Request] = {}
        self._leases: dict[int, str] = {}

    def submit(self, request: Request, now_s: float) -> None:
        ticket = Ticket(
            str(request.number),
            "gateway",
            request.tenant,
            ONLINE,
            request.prompt_tokens,
            4096,
            now_s,
            session=request.session if self._session else None,
            prefix=request.prefix if self._prefix else (),
        )
        self._waiting[ticket.ticket_id] = request
        if self.queue.submit(ticket, now_s) is not None:
            raise RuntimeError("the queue refused a request")

    def grants(self, now_s: float) -> Iterator[tuple[Request, int]]:
        for lease in self.queue.grant(now_s):
            request = self._waiting.pop(lease.ticket.ticket_id)
            self._leases[request.number] = lease.lease_id
            yield request, int(lease.replica_id)

    def finished(self, served: Served, now_s: float) -> None:
        request = served.request
        usage = TokenUsage(
            request.prompt_tokens,
            served.cached_tokens,
            request.output_tokens,
            first_token_s=served.first_token_at_s - served.given_at_s,
        )
        self.queue.release(self._leases.pop(request.number), usage, now_s)

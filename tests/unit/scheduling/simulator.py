"""A tiny deterministic engine model that drives the real queue: every running request yields one token a step."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

from cluster.scheduling import (
    ClassPolicy,
    Lease,
    OutputPredictor,
    QueuePolicy,
    Replica,
    RequestQueue,
    TenantPolicy,
    Ticket,
    TokenUsage,
)
from cluster.vocabulary import RequestClass

CLASSES = {
    RequestClass.ONLINE: ClassPolicy(max_queued=10**6, max_wait_s=10**9),
    RequestClass.SEMI_ONLINE: ClassPolicy(max_queued=10**6, max_wait_s=10**9, floor=0.1),
    RequestClass.OFFLINE: ClassPolicy(max_queued=10**6, max_wait_s=10**9, floor=0.05),
}
STEP_S = 0.02


class Simulation:
    """`slots` requests at once on one replica; keeps every (tenant, class) as backlogged as told."""

    def __init__(
        self,
        slots: int,
        serves: tuple[RequestClass, ...],
        predictor: OutputPredictor | None = None,
        policy: QueuePolicy | None = None,
        classes: dict[RequestClass, ClassPolicy] = CLASSES,
    ) -> None:
        self.queue = RequestQueue(classes, predictor=predictor, policy=policy)
        self.queue.put_replica(Replica("r0", "d", serves, slots), 0.0)
        self.slots = slots
        self.now_s = 0.0
        self.running: dict[str, tuple[Lease, int, int]] = {}
        self.lengths: dict[str, tuple[int, int]] = {}
        self.service: dict[tuple[str, RequestClass], float] = defaultdict(float)
        self.flow_service: dict[tuple[str, str, str | None], float] = defaultdict(float)
        self.backlog: dict[object, int] = defaultdict(int)
        self.busy_slot_steps = 0
        self._next = 0

    def tenant(self, name: str, policy: TenantPolicy) -> None:
        self.queue.set_tenant(name, policy, self.now_s)

    def submit(
        self, tenant: str, request_class: RequestClass, prompt: int, output: int, max_output: int = 0, **fields: Any
    ) -> str:
        """Without `max_output` the ticket's maximum is what the request will produce."""
        number = self._next
        self._next += 1
        ticket = Ticket(f"t{number}", "gw", tenant, request_class, prompt, max_output or output, self.now_s, **fields)
        self.lengths[ticket.ticket_id] = (prompt, output)
        assert self.queue.submit(ticket, self.now_s) is None
        self.backlog[_flow(ticket)] += 1
        self.backlog[tenant, request_class] += 1
        return ticket.ticket_id

    def keep_backlogged(
        self,
        tenant: str,
        request_class: RequestClass,
        rng: random.Random,
        sizes: tuple[int, int],
        *,
        shared_backlog: bool = False,
        **fields: Any,
    ) -> None:
        """Of the flow that `fields` name; with `shared_backlog` of all the tenant's flows together."""
        flow: object = (tenant, request_class)
        if fields and not shared_backlog:
            flow = (tenant, request_class, fields.get("key", ""), fields.get("program"))
        # More than one step can hand out: else the flow would not be backlogged all the time.
        while self.backlog[flow] <= self.slots:
            self.submit(tenant, request_class, rng.randint(1, sizes[0]), rng.randint(1, sizes[1]), **fields)

    def step(self) -> None:
        self.now_s += STEP_S
        for lease in self.queue.grant(self.now_s):
            ticket = lease.ticket
            self.backlog[ticket.tenant, ticket.request_class] -= 1
            self.backlog[_flow(ticket)] -= 1
            prompt, output = self.lengths[ticket.ticket_id]
            self.running[lease.lease_id] = (lease, 0, output)
            self._got(ticket, prompt)
        self.busy_slot_steps += len(self.running)
        for lease_id, (lease, done, output) in list(self.running.items()):
            done += 1
            self._got(lease.ticket, 2)
            self.queue.progress(lease_id, done, self.now_s)
            self.running[lease_id] = (lease, done, output)
            if done == output:
                del self.running[lease_id]
                prompt, _ = self.lengths[lease.ticket.ticket_id]
                assert self.queue.release(lease_id, TokenUsage(prompt, 0, output), self.now_s)

    def _got(self, ticket: Ticket, service: float) -> None:
        self.service[ticket.tenant, ticket.request_class] += service
        self.flow_service[ticket.tenant, ticket.key, ticket.program] += service


def _flow(ticket: Ticket) -> object:
    return ticket.tenant, ticket.request_class, ticket.key, ticket.program

"""A dispatcher and several lease clients in one event loop, without gateways and engines.

Role: what tests of the protocol between them share. Real: LeaseClient, Dispatcher, Store. Imitated: Ray's handle, the
replica actors' reports.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from cluster.scheduling import Ticket, TokenUsage
from cluster.state import Store
from cluster.vocabulary import RequestClass
from serve_apps.dispatcher import Dispatcher
from serve_apps.leases import LeaseClient
from serve_apps.messages import Grant, ReplicaReport
from tests.unit.serve_apps.adapter import Handle
from tests.unit.serve_apps.harness import configuration
from tests.unit.serve_apps.servers import eventually

REPORT_S = 0.2


class Floor:
    """Clients `gw-0`, `gw-1`, ... of one dispatcher."""

    def __init__(self, folder: Path, gateways: int, **sections: Any) -> None:
        self.folder = folder
        self.config = configuration(folder, **sections)
        store = Store(self.config["state"]["url"])
        store.create()
        store.add_tenants(self.config["tenants"])
        store.close()
        self.handle = Handle(Dispatcher(self.config, "m"))
        self.clients = [LeaseClient(self.handle, f"gw-{number}") for number in range(gateways)]
        self._replicas: dict[str, ReplicaReport] = {}
        self._numbers = itertools.count()
        self._reporting: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Floor]:
        for client in self.clients:
            client.start()
        self._reporting = asyncio.create_task(self._report_forever())
        try:
            yield self
        finally:
            self._reporting.cancel()
            for client in self.clients:
                await client.close()
            if self.handle.actor is not None:
                self.handle.kill()

    @property
    def dispatcher(self) -> Dispatcher:
        assert self.handle.actor is not None
        actor: Dispatcher = self.handle.actor.instance
        return actor

    @property
    def queue(self) -> Any:
        return self.dispatcher._queue

    async def replica(self, name: str, deployment: str = "d", state: Any = "ready") -> None:
        report = ReplicaReport(name, deployment, state, time.time(), base_url=f"http://{name}", api_key="k")
        self._replicas[name] = report
        with contextlib.suppress(RayError):
            await self.handle.report.remote(report)

    async def gone(self, name: str) -> None:
        del self._replicas[name]
        with contextlib.suppress(RayError):
            await self.handle.replica_gone.remote(name)

    async def restart(self, away_s: float = 0.0) -> None:
        if self.handle.actor is not None:
            self.handle.kill()
        await asyncio.sleep(away_s)
        self.handle.restart(Dispatcher(self.config, "m"))

    def ticket(self, client: LeaseClient, tenant: str = "a", tier: str = "online", **fields: Any) -> Ticket:
        name = f"t{next(self._numbers)}"
        tokens = {"prompt_tokens": fields.pop("prompt", 10), "max_output_tokens": fields.pop("output", 10)}
        return Ticket(name, client.gateway_id, tenant, RequestClass(tier), arrived_at_s=time.time(), **tokens, **fields)

    async def acquire(self, client: LeaseClient, tenant: str = "a", timeout_s: float = 10.0, **fields: Any) -> Grant:
        return await client.acquire(self.ticket(client, tenant, **fields), nothing, timeout_s)

    async def run(self, client: LeaseClient, tenant: str = "a", hold_s: float = 0.0, **fields: Any) -> Grant:
        """A request from lease to release."""
        grant = await self.acquire(client, tenant, **fields)
        await asyncio.sleep(hold_s)
        client.release(grant.lease.lease_id, TokenUsage(10, 0, 10))
        return grant

    async def prepaid(self, client: LeaseClient, at_least: int = 1) -> None:
        """Until the client holds prepaid leases, which takes a request or two and a tick."""
        await self.run(client)
        await eventually(lambda: len(client._pool) >= at_least)

    def calls(self) -> int:
        """Actor calls so far that bring a gateway's news."""
        return self.handle.called["exchange"]

    def in_step(self) -> bool:
        """Both ends agree on every lease, and no slot is counted twice."""
        queue, office = self.queue, self.dispatcher._office
        for client in self.clients:
            mine = {lease.lease_id for lease in queue.leases() if lease.ticket.owner == client.gateway_id}
            prepaid = {p.lease_id for p in queue.prepaid_of(client.gateway_id)}
            if mine != set(client._held) or prepaid != held(client):
                return False
            if office.prepaid.held().get(client.gateway_id, 0) != len(prepaid):
                return False
        taken = sum(r.running for r in queue.replicas())
        waiting = {ticket_id for client in self.clients for ticket_id in client._waiting}
        everything = len(queue.leases()) + sum(len(queue.prepaid_of(c.gateway_id)) for c in self.clients)
        return taken == everything and waiting == set(queue._waiting)

    async def _report_forever(self) -> None:
        while True:
            for report in list(self._replicas.values()):
                with contextlib.suppress(RayError):
                    await self.handle.report.remote(report)
            await asyncio.sleep(REPORT_S)


def held(client: LeaseClient) -> set[str]:
    """Unused prepaid leases."""
    return {prepaid.lease_id for prepaid in client._pool.held_by(client.gateway_id)}


def nothing() -> None:
    pass

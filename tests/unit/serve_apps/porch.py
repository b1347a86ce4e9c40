"""A gateway whose dispatcher is a script: grants and refusals come as the test says, at once.

Role: for tests of what the gateway itself does. Real: Gateway, Store, sockets, engine servers. Imitated: LeaseClient.
Must not know: policies.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai

from cluster.config import TribesConfig
from cluster.scheduling import Lease, RateLimitState, Refusal, Ticket, TokenUsage
from cluster.state import Store, UsageRecord
from serve_apps.gateway.asgi import Gateway
from serve_apps.leases import RefusedError
from serve_apps.messages import Grant
from tests.unit.serve_apps.harness import Sink, configuration
from tests.unit.serve_apps.servers import ENGINE_KEY, eventually, served


@dataclass(slots=True)
class StubLeases:
    """Grants a lease on `urls` in turn, or refuses with `refusal`."""

    urls: list[str]
    refusal: Refusal | None = None
    rate_limits: RateLimitState | None = None
    deployment: str = "d"
    tickets: list[Ticket] = field(default_factory=list)
    released: list[TokenUsage | None] = field(default_factory=list)
    gateway_id: str = "gw-1"

    def start(self) -> None: ...

    async def close(self) -> None: ...

    async def acquire(self, ticket: Ticket, on_lost: Callable[[], None], timeout_s: float) -> Grant:
        self.tickets.append(ticket)
        if self.refusal is not None:
            raise RefusedError(self.refusal)
        url = self.urls[len(self.tickets) % len(self.urls)]
        lease = Lease(f"l{len(self.tickets)}", ticket, url, ticket.arrived_at_s)
        return Grant(lease, self.deployment, url, ENGINE_KEY, rate_limits=self.rate_limits)

    def watch(self, lease_id: str, progress: Any) -> None: ...

    def release(self, lease_id: str, usage: TokenUsage | None) -> None:
        self.released.append(usage)

    def unreachable(self, replica_id: str) -> None: ...


class Porch:
    """A running gateway in front of stub leases."""

    def __init__(self, config: dict[str, Any], leases: StubLeases) -> None:
        self.config = TribesConfig.model_validate(config)
        self.store = Store(self.config.state.url)
        self.store.create()
        self.leases = leases
        self.sink = Sink()
        self.keys: dict[str, str] = {}
        self.url = ""
        self._clients: list[openai.AsyncOpenAI] = []
        self.gateway = Gateway(self.config, self.store, self._connect, self.sink, self._page, self.sink.happened)

    def _connect(self, model: str) -> Any:
        return self.leases

    async def _page(self) -> bytes:
        return b""

    def key(self, tenant: str = "default") -> str:
        if tenant not in self.keys:
            self.keys[tenant] = self.store.create_key(tenant)[1]
        return self.keys[tenant]

    def http(self, tenant: str = "default", key: str | None = None) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(self.url, headers={"Authorization": f"Bearer {key or self.key(tenant)}"})

    def openai(self, tenant: str = "default") -> openai.AsyncOpenAI:
        client = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.key(tenant), max_retries=0, timeout=20)
        self._clients.append(client)
        return client

    async def records(self, count: int) -> list[UsageRecord]:
        """What was finished, once there are `count` records: a client may have its answer a moment before."""
        await eventually(lambda: len(self.sink.records) >= count)
        return self.sink.records

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Porch]:
        async with served(self.gateway) as self.url:
            try:
                yield self
            finally:
                for client in self._clients:
                    await client.close()
        self.store.close()


@contextlib.asynccontextmanager
async def porch(
    folder: Path, *urls: str, refusal: Refusal | None = None, rate_limits: RateLimitState | None = None, **sections: Any
) -> AsyncIterator[Porch]:
    """A gateway in front of the engines at `urls`."""
    leases = StubLeases(list(urls), refusal, rate_limits)
    async with Porch(configuration(folder, **sections), leases).running() as running:
        yield running

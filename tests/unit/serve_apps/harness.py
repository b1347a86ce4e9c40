"""The whole request path in one process: gateway under uvicorn, dispatcher behind an imitated handle, engine processes.

Role: build and take down what the tests of the request path share. Real: Gateway, LeaseClient, Dispatcher, Store,
sockets, engine servers (scripted). Imitated: Ray's handle, the replica actor's reports.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai
import orjson
from ray.exceptions import RayError

from cluster.config import TribesConfig
from cluster.state import Store, UsageRecord
from serve_apps.dispatcher import Dispatcher
from serve_apps.gateway.asgi import Gateway
from serve_apps.leases import LeaseClient
from serve_apps.messages import ReplicaReport
from tests.unit.serve_apps.adapter import Handle
from tests.unit.serve_apps.servers import ENGINE_KEY, eventually, served

REPORT_S = 0.1
CHAT = "/v1/chat/completions"


@dataclass(slots=True)
class Sink:
    """Stands for the metrics."""

    records: list[UsageRecord] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    """What was done about replicas that failed."""

    def finished(self, record: UsageRecord) -> None:
        self.records.append(record)

    def happened(self, model: str, event: str) -> None:
        self.events.append(event)


def configuration(folder: Path, **sections: Any) -> dict[str, Any]:
    """One model `m`, served online and semi-online by deployment `d`."""
    deployment = {"model": "m", "serves": ["online", "semi_online"], "engine": {"kind": "vllm"}, "max_running": 4}
    plain = {
        "models": {"m": {"source": {"kind": "local", "path": str(folder)}}},
        "deployments": {"d": {**deployment, **sections.pop("deployment", {})}},
        "state": {"url": f"sqlite:///{folder}/state.db"},
        **sections,
    }
    return TribesConfig.model_validate(plain).model_dump(mode="json")


class House:
    """A running gateway with its dispatchers, and what a test does to them."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.parsed = TribesConfig.model_validate(config)
        self.store = Store(self.parsed.state.url)
        self.store.create()
        self.store.add_tenants({n: t.model_dump(mode="json") for n, t in self.parsed.tenants.items()})
        self.keys = {tenant: self.store.create_key(tenant)[1] for tenant in (*self.parsed.tenants, "default")}
        self.sink = Sink()
        self.handles: dict[str, Handle] = {}
        self.leases: dict[str, LeaseClient] = {}
        self.gateway = Gateway(self.parsed, self.store, self._connect, self.sink, self._page, self.sink.happened)
        self.url = ""
        self._reporters: dict[str, asyncio.Task[None]] = {}
        self._clients: list[openai.AsyncOpenAI] = []

    def _connect(self, model: str) -> LeaseClient:
        self.leases[model] = LeaseClient(self.handles[model], "gw-1")
        return self.leases[model]

    async def _page(self) -> bytes:
        return b"ray_tribes_up 1\n"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[House]:
        self.handles = {model: Handle(Dispatcher(self.config, model)) for model in self.parsed.models}
        async with served(self.gateway) as self.url:
            try:
                yield self
            finally:
                for task in self._reporters.values():
                    task.cancel()
                for client in self._clients:
                    await client.close()
        for handle in self.handles.values():
            if handle.actor is not None:
                handle.kill()
        self.store.close()

    # --- dispatcher -----------------------------------------------------------------------------------------------

    def dispatcher(self, model: str = "m") -> Dispatcher:
        actor = self.handles[model].actor
        assert actor is not None
        return actor.instance

    async def restart_dispatcher(self, away_s: float = 0.0) -> None:
        self.handles["m"].kill()
        await asyncio.sleep(away_s)
        self.handles["m"].restart(self.new_dispatcher())

    def new_dispatcher(self) -> Dispatcher:
        return Dispatcher(self.config, "m")

    async def state(self) -> dict[str, Any]:
        return await self.dispatcher().status()

    async def waiting(self) -> int:
        return sum(c["waiting"] for c in (await self.state())["classes"].values())

    async def running_leases(self) -> int:
        return len(self.dispatcher()._queue.leases())

    async def quiet(self) -> None:
        """Nothing waits, nothing runs, on either end: no lease has leaked."""

        async def is_quiet() -> bool:
            status = await self.state()
            on_replicas = sum(r["running"] for r in status["replicas"])
            own = sum(len(c._held) + len(c._waiting) for c in self.leases.values())
            return not (await self.waiting() or await self.running_leases() or on_replicas or own)

        await eventually(is_quiet)

    # --- replicas -------------------------------------------------------------------------------------------------

    async def replica(self, name: str, url: str, deployment: str = "d", api_key: str = ENGINE_KEY) -> None:
        """Register a replica and let it report, as the replica actor does, until `silence` or `gone`."""
        handle = self.handles[self.parsed.deployments[deployment].model]
        report = ReplicaReport(
            replica_id=name,
            deployment=deployment,
            state="ready",
            started_at_s=time.time(),
            base_url=url,
            api_key=api_key,
            cold_start_s=1.0,
        )

        async def report_forever() -> None:
            while True:
                with contextlib.suppress(RayError):
                    await handle.report.remote(report)
                await asyncio.sleep(REPORT_S)

        await handle.report.remote(report)
        self._reporters[name] = asyncio.create_task(report_forever())

    def silence(self, name: str) -> None:
        self._reporters.pop(name).cancel()

    async def gone(self, name: str, model: str = "m") -> None:
        self.silence(name)
        await self.handles[model].replica_gone.remote(name)

    # --- clients --------------------------------------------------------------------------------------------------

    def openai(self, tenant: str = "default", *, retries: int = 0, key: str | None = None) -> openai.AsyncOpenAI:
        client = openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=key or self.keys[tenant], max_retries=retries, timeout=20
        )
        self._clients.append(client)
        return client

    def session(self, tenant: str = "default") -> aiohttp.ClientSession:
        return aiohttp.ClientSession(self.url, headers={"Authorization": f"Bearer {self.keys[tenant]}"})

    async def ask(self, tenant: str = "default", **fields: Any) -> tuple[int, dict[str, Any]]:
        """One whole chat answer: status and body."""
        async with self.session(tenant) as http, http.post(CHAT, json=chat(**fields)) as answer:
            return answer.status, orjson.loads(await answer.read())

    async def ledger(self, rows: int) -> list[UsageRecord]:
        """The ledger's rows, once there are `rows` of them."""
        await eventually(lambda: len(self.store.usage()) >= rows)
        return self.store.usage()


def chat(text: str = "hello there", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}

"""The worker as Ray Serve runs it: restarted where it dies, one process a replica. Owns: building its parts.

Must not know: what the worker does.
"""

from __future__ import annotations

import asyncio
import uuid
from functools import partial
from typing import Any

from cluster.config import TribesConfig
from cluster.files import FileStore
from cluster.metrics.failover import FailoverMetrics
from cluster.metrics.requests import RequestMetrics
from cluster.state import Store, UsageRecord
from cluster.state.deferred import DeferredStore
from serve_apps.deferred.jobs import RayJobs
from serve_apps.deferred.runner import Runner
from serve_apps.deferred.shop import Shop
from serve_apps.deferred.slots import Slots
from serve_apps.deferred.worker import Worker
from serve_apps.gateway.courses.replica_health import Happened, untold
from serve_apps.gateway.engine_client import EngineClient
from serve_apps.gateway.headless import Headless
from serve_apps.gateway.upstreams.routes import Upstreams
from serve_apps.leases import LeaseClient
from serve_apps.names import ensure_dispatcher


class DeferredWorker:
    """Nobody calls it: it finds its work in the state store."""

    async def __init__(self, config: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        parsed = TribesConfig.model_validate(config)
        self._store = Store(parsed.state.url)
        await asyncio.to_thread(self._store.create)
        files = await asyncio.to_thread(FileStore, parsed.files.url)
        await asyncio.to_thread(files.check)
        gateway = parsed.gateway
        self._engines = EngineClient(gateway.upstream_connect_timeout_s, gateway.upstream_idle_timeout_s)
        self._leases = {model: _connect(config, model) for model in {d.model for d in parsed.serving().values()}}
        for leases in self._leases.values():
            leases.start()
        self._upstreams = Upstreams(parsed, self._store, accepted_work=True)
        await self._upstreams.start()
        shop = Shop(
            parsed,
            self._store,
            DeferredStore(self._store),
            files,
            make_runner(
                parsed, self._engines, self._leases, RequestMetrics(), self._upstreams, FailoverMetrics().happened
            ),
            Slots(parsed.batches.max_in_flight),
            Slots(parsed.batches.max_jobs),
            RayJobs(),
        )
        self._worker = Worker(shop)
        self._worker.start()

    async def check_health(self) -> None:
        self._worker.check()

    async def __del__(self) -> None:
        await self._worker.close()
        for leases in self._leases.values():
            await leases.close()
        await self._upstreams.close()
        await self._engines.close()
        self._store.close()


def make_runner(
    config: TribesConfig,
    engines: EngineClient,
    leases: dict[str, LeaseClient],
    metrics: RequestMetrics | Any,
    upstreams: Upstreams | None = None,
    happened: Happened = untold,
) -> Runner:
    """A runner that also counts what finishes."""

    def connect(finished: Any) -> Headless:
        def both(record: UsageRecord) -> None:
            metrics.finished(record)
            finished(record)

        return Headless(engines, config, both, upstreams, happened)

    return Runner(connect, leases, config.batches.max_attempts)


def _connect(config: dict[str, Any], model: str) -> LeaseClient:
    dispatcher = ensure_dispatcher(config, model)
    return LeaseClient(dispatcher, f"dw-{uuid.uuid4().hex[:12]}", partial(ensure_dispatcher, config, model))

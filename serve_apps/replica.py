"""An engine replica: a Serve deployment whose replica supervises one engine server and tells the dispatcher about it.

No request passes through this actor: gateways talk to the engine's server directly. Its life: `starting` (the model
is prepared, the engine comes up) -> `ready` -> `draining` (takes no lease, finishes what runs) -> gone. When the
engine dies the replica fails its health check and Ray Serve replaces it.

Owns: one EngineServer and its registration. Must not know: requests, tenants, fairness.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from pathlib import Path
from typing import Any

import aiohttp
import ray
from ray import serve
from ray.exceptions import RayError

from cluster.config import TribesConfig
from cluster.engines import EngineServer, LaunchSpec, LoadUnavailableError, build_spec, new_api_key, read_load
from cluster.models import prepare_model
from cluster.state import Store
from serve_apps.fork_hosts import socket_for
from serve_apps.messages import ReplicaReport, ReplicaState
from serve_apps.names import ensure_dispatcher

REPORT_S = 1.0
LOAD_EVERY = 5
SPAN_EVERY = 5
DRAIN_POLL_S = 0.2
log = logging.getLogger("ray.serve")


class EngineReplica:
    """One engine server of one deployment."""

    async def __init__(self, config: dict[str, Any], deployment: str) -> None:  # type: ignore[misc]  # Serve awaits it
        self._plain_config = config
        self._config = TribesConfig.model_validate(config)
        self._name = deployment
        self._deployment = self._config.deployments[deployment]
        self._replica_id = f"{deployment}/{serve.get_replica_context().replica_id.unique_id}"
        self._dispatcher = ensure_dispatcher(config, self._deployment.model)
        self._store = Store(self._config.state.url)
        self._started_at_s = time.time()
        self._state: ReplicaState = "starting"
        self._cold_start_s: float | None = None
        self._kv_usage: float | None = None
        self._running = 0
        self._server: EngineServer | None = None
        self._reporting = asyncio.create_task(self._report_forever())
        try:
            await self._start_engine()
        except BaseException:
            await self._leave()
            raise

    async def check_health(self) -> None:
        """Raises when the engine is gone, so that Ray Serve replaces this replica."""
        if self._server is not None and not self._server.is_alive():
            raise RuntimeError(f"the engine of {self._replica_id} ended: {await self._server.wait_dead()}")

    async def __del__(self) -> None:
        """Ray Serve takes this replica away: finish what runs (bounded by drain_timeout_s), then stop the engine."""
        if self._server is not None and self._server.is_alive():
            await self._drain()
        await self._leave()

    async def _start_engine(self) -> None:
        model = self._deployment.model
        prepared = await asyncio.to_thread(
            prepare_model, model, self._config.models[model], self._config.paths, log.info
        )
        host, api_key = self._host(), new_api_key()
        max_model_len = self._config.models[model].max_model_len

        def make_spec(port: int) -> LaunchSpec:
            return build_spec(
                self._deployment,
                model,
                Path(prepared.path_or_id),
                host,
                port,
                api_key,
                max_model_len=max_model_len,
                revision=prepared.revision,
            )

        fork_host = await socket_for(self._deployment, make_spec(0))
        self._server = EngineServer(make_spec, log, host=host, fork_host=fork_host)
        await self._server.start()
        self._cold_start_s = time.time() - self._started_at_s
        self._state = "ready"
        await self._report()
        log.info("%s is ready after %.1f s", self._replica_id, self._cold_start_s)

    def _host(self) -> str:
        """Where the engine listens: only on loopback when the whole cluster is this machine."""
        return "127.0.0.1" if self._config.ray.address is None else ray.util.get_node_ip_address()

    async def _drain(self) -> None:
        self._state = "draining"
        deadline = time.monotonic() + self._deployment.replicas.drain_timeout_s
        await self._report()
        while self._running and time.monotonic() < deadline:
            await asyncio.sleep(DRAIN_POLL_S)
            await self._report()

    async def _leave(self) -> None:
        self._reporting.cancel()
        with contextlib.suppress(RayError):
            await self._dispatcher.replica_gone.remote(self._replica_id)
        if self._server is not None:
            await self._server.stop()
        await asyncio.to_thread(self._touch_span)

    async def _report_forever(self) -> None:
        """Once a second for the replica's life; a dispatcher that is being restarted is simply told again."""
        for turn in itertools.count():
            if self._server is not None and self._state == "ready" and not self._server.is_alive():
                with contextlib.suppress(RayError):
                    await self._dispatcher.replica_gone.remote(self._replica_id)
                return
            if turn % LOAD_EVERY == 0 and self._state == "ready":
                await self._read_load()
            if turn % SPAN_EVERY == 0:
                await asyncio.to_thread(self._touch_span)
            await self._report()
            await asyncio.sleep(REPORT_S)

    async def _report(self) -> None:
        ready = self._server is not None and self._state != "starting"
        report = ReplicaReport(
            replica_id=self._replica_id,
            deployment=self._name,
            state=self._state,
            started_at_s=self._started_at_s,
            pid=(self._server.pid or 0) if self._server else 0,
            base_url=self._server.base_url if ready and self._server else "",
            api_key=self._server.api_key if ready and self._server else "",
            cold_start_s=self._cold_start_s,
            rung="forked" if self._server and self._server.forked else "cold",
            kv_usage=self._kv_usage,
        )
        try:
            order = await self._dispatcher.report.remote(report)
            self._running = order.running
        except RayError:
            # Being restarted, or gone for good: finding it again covers both, and the next report is a second away.
            with contextlib.suppress(RayError, ValueError):
                self._dispatcher = await asyncio.to_thread(
                    ensure_dispatcher, self._plain_config, self._deployment.model
                )

    async def _read_load(self) -> None:
        assert self._server is not None
        kind = self._deployment.engine.kind
        with contextlib.suppress(LoadUnavailableError, aiohttp.ClientError, TimeoutError):
            timeout = aiohttp.ClientTimeout(total=2)
            async with aiohttp.ClientSession(timeout=timeout) as session:
                load = await read_load(kind, session, self._server.base_url, self._server.api_key)
            self._kv_usage = load.kv_usage

    def _touch_span(self) -> None:
        pool = self._config.pools[self._deployment.pool]
        price = pool.replica_usd_per_hour(self._deployment.resources)
        self._store.touch_replica(
            self._replica_id, self._deployment.model, self._name, price, self._started_at_s, time.time()
        )

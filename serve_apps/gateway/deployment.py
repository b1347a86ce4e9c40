"""The gateway as Ray Serve runs it: behind Serve's HTTP endpoint, and as a listener of its own.

Owns: building a Gateway inside a Serve replica. Must not know: what the gateway does with a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import uvicorn
from ray import serve

from cluster.config import TribesConfig
from cluster.metrics.failover import FailoverMetrics
from cluster.metrics.requests import RequestMetrics
from cluster.state import Store
from serve_apps.gateway.apis.metrics_page import MetricsPage
from serve_apps.gateway.asgi import Gateway
from serve_apps.gateway.corked import CorkedProtocol
from serve_apps.leases import LeaseClient
from serve_apps.names import ensure_dispatcher

COLLECTOR_THRESHOLDS = (10_000, 20, 50)


def build_gateway(config: dict[str, Any]) -> Gateway:
    """A gateway for this process; it starts with the ASGI lifespan (or `start`)."""
    parsed = TribesConfig.model_validate(config)
    store = Store(parsed.state.url)
    store.create()
    store.add_tenants({name: tenant.model_dump(mode="json") for name, tenant in parsed.tenants.items()})
    gateway_id = f"gw-{uuid.uuid4().hex[:12]}"

    def connect(model: str) -> LeaseClient:
        dispatcher = ensure_dispatcher(config, model)
        # An older dispatcher may still run with the configuration before this one.
        dispatcher.configure.remote(config)
        return LeaseClient(dispatcher, gateway_id, partial(ensure_dispatcher, config, model))

    return Gateway(parsed, store, connect, RequestMetrics(), MetricsPage(), FailoverMetrics().happened)


def calm_collector() -> None:
    """Keep the garbage collector off what is there for good.

    Modules, classes and settings are some hundred thousand objects. A full collection looks at all of them and stops
    every stream meanwhile, for tens of milliseconds; requests leave few cycles behind.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


@serve.ingress()
class GatewayDeployment:
    """Behind Serve's HTTP endpoint. `others` are the deployments that belong to the application."""

    def __init__(self, config: dict[str, Any], *others: Any) -> None:
        self._gateway = build_gateway(config)
        calm_collector()

    def __serve_build_asgi_app__(self) -> Gateway:
        return self._gateway


OWN_SERVER = {
    "http": CorkedProtocol,
    "lifespan": "on",
    "log_level": "warning",
    "access_log": False,
    "proxy_headers": False,  # nobody asks where a client is
    "timeout_keep_alive": 60,
}


class OwnDoor:
    """The gateway on its own uvicorn listener (`gateway.own_door`); several replicas share the port by SO_REUSEPORT."""

    async def __init__(self, config: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._gateway = build_gateway(config)
        calm_collector()
        gateway = TribesConfig.model_validate(config).gateway
        assert gateway.own_door.port is not None
        self._server = _Server(
            uvicorn.Config(self._gateway, **OWN_SERVER)  # type: ignore[arg-type]
        )
        listener = socket.create_server((gateway.host, gateway.own_door.port), reuse_port=True, backlog=2048)
        self._serving = asyncio.get_running_loop().create_task(self._server.serve([listener]))

    async def check_health(self) -> None:
        if self._serving.done():
            raise RuntimeError(f"the gateway's own listener ended: {self._serving}")

    async def __del__(self) -> None:
        self._server.should_exit = True
        await self._serving


class _Server(uvicorn.Server):
    """uvicorn inside somebody else's process: signals are Ray's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

"""Fork hosts in a cluster: one on each node and for each environment that a deployment may be forked in.

`ForkHosts` is a Serve deployment with nothing to serve: it is there from the deploy on, before the first replica, sees
nodes that join, and takes its hosts along when the application is deleted. Each host is owned by an actor on its node.
A replica asks the actor of its node for the socket and starts cold where there is none.
Owns: which nodes have hosts. Must not know: how forking works.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.coldstart.capabilities import auto_fork_fits
from cluster.coldstart.fork_server import ForkServer, ForkServerError, plan_for
from cluster.config import DeploymentConfig, TribesConfig
from cluster.engines import LaunchSpec, build_spec, new_api_key
from cluster.models import prepare_model
from serve_apps.names import NAMESPACE

ROUND_S = 10.0
ANSWER_S = 5.0
STARTS = 3
"""A host that died this often is not started again: something is wrong with it, and cold starts work."""
log = logging.getLogger("ray.serve")


def forked_deployments(config: TribesConfig) -> dict[str, DeploymentConfig]:
    return {name: item for name, item in config.serving().items() if item.engine.start != "cold"}


async def socket_for(deployment: DeploymentConfig, spec: LaunchSpec) -> Path | None:
    """Where to ask on this node for an engine like `spec`; None where a cold start is the only way."""
    plan = plan_for(spec)
    if deployment.engine.start == "cold" or plan is None:
        return None
    name = _name(ray.get_runtime_context().get_node_id(), deployment)
    try:
        async with asyncio.timeout(ANSWER_S):
            host = await asyncio.to_thread(ray.get_actor, name, namespace=NAMESPACE)
            path = await host.socket.remote(plan.key)
    except (RayError, ValueError, TimeoutError) as error:
        log.info("no fork host to ask (%s): starting cold", type(error).__name__)
        return None
    if path is None:
        log.info("the fork host of this node is not ready: starting cold")
    return None if path is None else Path(path)


class ForkHost:
    """The actor that owns one fork host. When it dies, the host ends; engines that came from it go on."""

    def __init__(self, config: dict[str, Any], deployment: str) -> None:
        self._config = TribesConfig.model_validate(config)
        self._name = deployment
        self._server: ForkServer | None = None
        self._key: str | None = None
        self._starts = 0
        self._starting: asyncio.Task[None] | None = None

    async def keep(self) -> None:
        """Start the host unless it runs. Returns at once."""
        busy = self._starting is not None and not self._starting.done()
        if busy or (self._server is not None and self._server.is_ready()) or self._starts >= STARTS:
            return
        self._starts += 1
        self._starting = asyncio.create_task(self._start())

    async def socket(self, key: str) -> str | None:
        """Where engines of the environment `key` can be asked for now."""
        ready = self._server is not None and self._server.is_ready() and self._key == key
        return str(self._server.socket) if ready and self._server is not None else None

    async def _start(self) -> None:
        if self._server is not None:
            await self._server.stop()
        deployment = self._config.deployments[self._name]
        if deployment.engine.start == "auto" and not auto_fork_fits():
            log.info("no fork host for %s: this node has not the memory", self._name)
            return
        model = deployment.model
        prepared = await asyncio.to_thread(
            prepare_model, model, self._config.models[model], self._config.paths, log.info
        )
        plan = plan_for(build_spec(deployment, model, prepared.path_or_id, "127.0.0.1", 0, new_api_key()))
        if plan is None or deployment.resources.gpus:
            log.warning("no fork host for %s: it has GPUs, or a command of its own", self._name)
            return
        try:
            self._server, self._key = ForkServer(plan, log), plan.key
            await self._server.until_ready()
        except (ForkServerError, OSError) as error:
            log.warning("no fork host for %s: %s", self._name, error)


class ForkHosts:
    """The Serve deployment that keeps them."""

    async def __init__(self, config: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._plain = config
        self._config = TribesConfig.model_validate(config)
        self._hosts: dict[str, Any] = {}
        self._rounds = asyncio.create_task(self._forever())

    async def check_health(self) -> None:
        if self._rounds.done():
            self._rounds.result()

    async def __del__(self) -> None:
        self._rounds.cancel()

    async def _forever(self) -> None:
        while True:
            for node in await asyncio.to_thread(ray.nodes):
                for deployment, item in forked_deployments(self._config).items():
                    labels = self._config.pools[item.pool].labels
                    if node["Alive"] and labels.items() <= node.get("Labels", {}).items():
                        await self._keep(node["NodeID"], deployment, item)
            await asyncio.sleep(ROUND_S)

    async def _keep(self, node: str, deployment: str, item: DeploymentConfig) -> None:
        name = _name(node, item)
        try:
            async with asyncio.timeout(ANSWER_S):
                if name not in self._hosts:
                    self._hosts[name] = await asyncio.to_thread(self._make, name, node, deployment)
                await self._hosts[name].keep.remote()
        except TimeoutError:
            log.debug("%s is still being placed", name)
        except (RayError, ValueError) as error:
            log.info("the fork host of node %s is made anew: %s", node, type(error).__name__)
            self._hosts.pop(name, None)

    def _make(self, name: str, node: str, deployment: str) -> Any:
        """Not detached: it goes with this process. That of an application that is being replaced is taken over."""
        options: dict[str, Any] = {
            "name": name,
            "namespace": NAMESPACE,
            "get_if_exists": True,
            "num_cpus": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
        }
        return ray.remote(ForkHost).options(**options).remote(self._plain, deployment)


def _name(node: str, deployment: DeploymentConfig) -> str:
    """Deployments with one environment share a host."""
    engine = deployment.engine
    text = json.dumps([engine.kind, engine.python, engine.entrypoint, sorted(engine.env.items())])
    return f"fork-host:{node}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"

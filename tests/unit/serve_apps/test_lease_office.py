"""Replicas come, change and go while gateways hold leases on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.scheduling import TokenUsage
from tests.unit.serve_apps.harness import configuration
from tests.unit.serve_apps.lease_floor import Floor
from tests.unit.serve_apps.servers import eventually

D: dict[str, Any] = {"model": "m", "serves": ["online"], "engine": {"kind": "vllm"}, "max_running": 2}


async def test_a_deployment_that_is_no_longer_configured_is_given_nothing_more(tmp_path: Path) -> None:
    """Serve takes its replicas away one by one: each waits for what runs there, and that must come to an end."""
    async with Floor(tmp_path, 1, deployments={"d": D, "old": D}).open() as floor:
        (client,) = floor.clients
        await floor.replica("r0")
        await floor.replica("r1", deployment="old")
        running = [await floor.acquire(client) for _ in range(4)]
        assert {grant.lease.replica_id for grant in running} == {"r0", "r1"}
        await floor.handle.configure.remote(configuration(tmp_path, deployments={"d": D}))
        assert floor.queue.taken_on("r1") == 2, "what runs there runs on"
        for grant in running:
            client.release(grant.lease.lease_id, TokenUsage(1, 0, 1))
        await eventually(lambda: not floor.queue.leases())
        await floor.replica("r1", deployment="old", state="draining")
        again = [await floor.acquire(client) for _ in range(2)]
        assert {grant.lease.replica_id for grant in again} == {"r0"} and floor.queue.taken_on("r1") == 0


async def test_a_replica_of_a_deployment_that_nobody_knows_is_left_alone(tmp_path: Path) -> None:
    async with Floor(tmp_path, 1, deployments={"d": D}).open() as floor:
        await floor.replica("r9", deployment="unheard of")
        assert floor.queue.replicas() == []

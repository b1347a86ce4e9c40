"""Engines forked from a fork host, as a replica with `engine.start: fork` gets them: soon up, and as any other."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

import aiohttp
import pytest

from cluster.coldstart.fork_server import ForkServer, plan_for
from cluster.coldstart.report import spec_maker
from cluster.config import load_config
from cluster.engines import EngineServer, read_load
from cluster.engines.guard import descendants
from tests.unit.engines.processes import all_gone, command_line

pytestmark = [pytest.mark.engine, pytest.mark.timeout(200)]
CONFIG = Path(__file__).parents[2] / "configs" / "local.yaml"
SOON_S = 20.0
"""Where cold starts take 25 to 70 s, forked ones take 3 to 9."""
LOG = logging.getLogger("test.forked")


async def ask(server: EngineServer) -> str:
    headers = {"Authorization": f"Bearer {server.api_key}"}
    question = [{"role": "user", "content": "What is the capital of France?"}]
    body = {"model": server.model_name, "messages": question, "max_tokens": 12, "temperature": 0}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{server.base_url}/v1/chat/completions", json=body) as response,
    ):
        assert response.status == 200, await response.text()
        return str((await response.json())["choices"][0]["message"]["content"])


def entries(folder: str) -> set[Path]:
    return set(Path(folder).iterdir())


@pytest.mark.parametrize(("deployment", "engines"), [("smollm2-burst", 2), ("smollm2-online", 1)])
async def test_forked_engines_one_after_the_other_and_the_death_of_the_host(deployment: str, engines: int) -> None:
    config = load_config(CONFIG)
    make_spec = spec_maker(config, config.deployments[deployment], print)
    plan = plan_for(make_spec(0))
    assert plan is not None
    shared_memory = entries("/dev/shm")
    host = ForkServer(plan, LOG)
    servers: list[EngineServer] = []
    try:
        await host.until_ready()
        print(f"the host: ready after {host.ready_in_s:.1f} s, {host.memory().pss_bytes / 2**30:.2f} GiB")
        for _ in range(engines):
            server = EngineServer(make_spec, LOG, fork_host=host.socket)
            servers.append(server)
            await server.start()
            print(f"forked: up after {server.started_in_s:.1f} s")
            assert server.forked and server.started_in_s is not None and server.started_in_s < SOON_S
            assert "Paris" in await ask(server)
        *earlier, last = servers
        pids = [pid for server in servers for pid in (server.pid, *descendants(server.pid or 0))]
        assert not any(last.api_key.encode() in command_line(pid) for pid in pids)
        for server in earlier:
            await server.stop()
        os.kill(host.pid, signal.SIGKILL)
        assert await asyncio.to_thread(all_gone, [host.pid])
        assert "Paris" in await ask(last)
        async with aiohttp.ClientSession() as session:
            load = await read_load(config.deployments[deployment].engine.kind, session, last.base_url, last.api_key)
        assert load.generation_tokens_total > 0
    finally:
        for server in servers:
            await server.stop()
        await host.stop()
    assert all_gone(pids, 1)
    assert entries("/dev/shm") <= shared_memory

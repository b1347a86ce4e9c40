"""Each real engine, started as a replica starts it, with the settings of configs/local.yaml. One start each: SGLang is
then stopped, vLLM is killed, and neither may leave anything behind."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from cluster.config import TribesConfig, load_config
from cluster.engines import EngineServer, build_spec, new_api_key, read_load
from cluster.engines.guard import descendants
from cluster.engines.launch import LaunchSpec
from cluster.models import PreparedModel, prepare_model
from tests.unit.engines.processes import alive, command_line

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]
CONFIG = Path(__file__).parents[2] / "configs" / "local.yaml"
MODEL = "smollm2-135m"
QUESTION = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 12,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def config() -> TribesConfig:
    return load_config(CONFIG)


@pytest.fixture(scope="module")
def model(config: TribesConfig) -> PreparedModel:
    return prepare_model(MODEL, config.models[MODEL], config.paths)


@pytest.fixture(autouse=True)
def nothing_left_in_shared_memory() -> Iterator[None]:
    before = set(Path("/dev/shm").iterdir())
    yield
    assert set(Path("/dev/shm").iterdir()) <= before


async def ask(session: aiohttp.ClientSession, server: EngineServer, key: str, **more: object) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {key}"}
    url = f"{server.base_url}/v1/chat/completions"
    async with session.post(url, json={**QUESTION, **more}, headers=headers) as response:
        return response.status, await response.text()


async def end(server: EngineServer, how: str) -> None:
    started = time.monotonic()
    if how == "kill":
        assert server.pid is not None
        _, engine, *_ = descendants(server.pid)  # below the inner guard
        os.kill(engine, signal.SIGKILL)
        assert "exit code 137" in await asyncio.wait_for(server.wait_dead(), 20)
        assert not server.is_alive()
    await server.stop()
    print(f"{how}: gone after {time.monotonic() - started:.1f} s")


@pytest.mark.parametrize(("deployment_name", "how"), [("smollm2-online", "stop"), ("smollm2-burst", "kill")])
async def test_an_engine_serves_with_its_key_tells_its_load_and_leaves_nothing(
    deployment_name: str, how: str, config: TribesConfig, model: PreparedModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    deployment = config.deployments[deployment_name]
    kind = deployment.engine.kind
    key = new_api_key()

    def make_spec(port: int) -> LaunchSpec:
        max_len = config.models[MODEL].max_model_len
        return build_spec(deployment, MODEL, model.path_or_id, "127.0.0.1", port, key, max_model_len=max_len)

    server = EngineServer(make_spec, logging.getLogger(f"test.{kind}"))
    await server.start()
    print(f"{kind}: up after {server.started_in_s:.1f} s")
    try:
        assert server.is_alive() and server.pid is not None
        tree = [server.pid, *descendants(server.pid)]
        assert not any(key.encode() in command_line(pid) for pid in tree), "any user of the node could read the key"
        async with aiohttp.ClientSession() as session:
            status, text = await ask(session, server, key)
            assert (status, "Paris" in text) == (200, True), text
            assert (await ask(session, server, "wrong"))[0] == 401
            await ask(session, server, key, max_tokens=4)
            status, text = await ask(session, server, key, stream=True, stream_options={"include_usage": True})
            assert status == 200 and '"cached_tokens"' in text
            load = await read_load(kind, session, server.base_url, key)
        print(f"{kind}: {load}")
        assert load.prompt_tokens_total > 30 and load.generation_tokens_total > 10
        assert 0 <= load.kv_usage <= 1
        tree = [server.pid, *descendants(server.pid)]
    finally:
        await end(server, how)
    assert not [pid for pid in tree if alive(pid)]
    assert "POST /v1" not in caplog.text and key not in caplog.text

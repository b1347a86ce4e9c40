"""A hundred `kill -9` under streams, whole replicas dying, a rolling update, on a real Ray cluster: no client notices.

The engines are scripted; a text that goes on on another one has no gap and no repetition, or the words would show it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from openai import AsyncOpenAI

from cluster.config import TribesConfig
from tests.support.stack import REPO, Stack, free_ports, running

pytestmark = [pytest.mark.live, pytest.mark.timeout(400)]
MODEL = "tiny"
KILLS = 100
CLIENTS = 12
WORDS = 60
SERVING = "tests.support.phoenix_engine"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TribesConfig:
    folder = tmp_path_factory.mktemp("failover")
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"architectures": ["Scripted"]}))
    gateway, ray, dashboard = free_ports(3)
    engine = {
        "kind": "vllm",
        "entrypoint": ["python", "-m", SERVING],
        "env": {"PYTHONPATH": str(REPO)},
        "args": {"itl-ms": 10},
    }
    return TribesConfig.model_validate(
        {
            "models": {"tiny": {"source": {"kind": "local", "path": str(model)}, "max_model_len": 2048}},
            "deployments": {
                "tiny-online": {
                    "model": "tiny",
                    "serves": ["online"],
                    "engine": engine,
                    "max_running": 8,
                    "resources": {"cpus": 0.1},
                    "replicas": {"min": 3, "max": 3, "drain_timeout_s": 30},
                }
            },
            # A stream here meets several deaths a second: more than the defaults would bear.
            "gateway": {
                "port": gateway,
                "max_continuations": 20,
                "max_attempts": 6,
                "retries": {"floor_per_s": 20},
            },
            "paths": {"data": str(folder / "data"), "models": str(folder / "models")},
            "ray": {"num_cpus": 4, "object_store_gib": 0.2, "port": ray, "dashboard_port": dashboard},
        }
    )


@pytest.fixture(scope="module")
def stack(config: TribesConfig) -> Iterator[Stack]:
    with running(config) as stack:
        stack.wait("three replicas", lambda: len(stack.replicas(MODEL, "tiny-online")) == 3, 60)
        yield stack


class Load:
    """Clients that ask for one stream after the other, and check every one of them."""

    def __init__(self, stack: Stack) -> None:
        self.streams = 0
        self._api = AsyncOpenAI(
            base_url=f"{stack.base_url}/v1", api_key=stack.started.api_key, max_retries=0, timeout=60
        )
        self._over = False

    async def _client(self) -> None:
        while not self._over:
            stream = await self._api.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "go"}],
                stream=True,
                temperature=0,
                max_tokens=WORDS,
                stream_options={"include_usage": True},
                extra_body={"x_script": {"tokens": 2 * WORDS}},
            )
            chunks = [chunk async for chunk in stream]
            text = [c.choices[0].delta.content or "" for c in chunks if c.choices]
            assert "".join(text) == "".join(f" w{number}" for number in range(WORDS))
            assert len({chunk.id for chunk in chunks}) == 1
            usage = chunks[-1].usage
            assert usage is not None and usage.completion_tokens == WORDS
            self.streams += 1

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        """Any failure of any client fails the block."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._client())
            try:
                yield self
            finally:
                self._over = True
        await self._api.close()


def engine_of(guard: int) -> list[psutil.Process]:
    tree = psutil.Process(guard).children(recursive=True)
    return [process for process in tree if process.cmdline()[1:3] == ["-m", SERVING]]


def serving(guard: int) -> psutil.Process | None:
    """The process of a replica that has the connections."""
    mine = engine_of(guard)
    return next((process for process in mine if process.ppid() in {parent.pid for parent in mine}), None)


async def test_a_hundred_kills_in_a_row(stack: Stack) -> None:
    replicas = stack.replicas(MODEL, "tiny-online")
    killed = 0
    async with Load(stack).running() as load:
        await asyncio.sleep(1)
        before, began_s = load.streams, time.monotonic()
        while killed < KILLS:
            victim = serving(replicas[killed % len(replicas)]["pid"])
            if victim is not None:
                victim.kill()
                killed += 1
            await asyncio.sleep(0.3)
        during = load.streams - before
    print(f"{killed} kills in {time.monotonic() - began_s:.0f} s, {during} streams meanwhile")
    assert during > KILLS / 2
    await _nothing_held(stack)


async def test_whole_replicas_die_and_are_replaced(stack: Stack) -> None:
    dead: set[str] = set()

    def alive() -> list[dict[str, Any]]:
        return [r for r in stack.replicas(MODEL, "tiny-online") if r["replica_id"] not in dead]

    async with Load(stack).running() as load:
        for _ in range(3):
            await asyncio.to_thread(stack.wait, "two replicas", lambda: len(alive()) >= 2, 60)
            victim, before = (await asyncio.to_thread(alive))[0], load.streams
            dead.add(victim["replica_id"])
            for process in engine_of(victim["pid"]):
                process.kill()
            await asyncio.to_thread(stack.wait, "streams go on", lambda b=before: load.streams > b + CLIENTS, 30)
    await asyncio.to_thread(_wait_for_replicas, stack, 3)
    await _nothing_held(stack)


async def test_a_rolling_update_under_load(stack: Stack, tmp_path: Path) -> None:
    """Every replica is drained and replaced, one of three goes for good, the gateway is replaced too."""
    settings = stack.config.model_dump(mode="json", exclude={"source_path"})
    settings["deployments"]["tiny-online"]["replicas"] |= {"min": 2, "max": 2}
    file = yaml.safe_load((REPO / "configs" / "serve" / "local.yaml").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings))
    file["applications"][0]["args"]["config"] = str(tmp_path / "config.json")
    file["http_options"]["port"] = stack.config.gateway.port
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(file))
    before = {replica["replica_id"] for replica in stack.replicas(MODEL, "tiny-online")}
    serve = [Path(sys.executable).with_name("serve"), "deploy", tmp_path / "serve.yaml"]
    dashboard = f"http://127.0.0.1:{stack.config.ray.dashboard_port}"

    def replaced() -> bool:
        now = {replica["replica_id"] for replica in stack.replicas(MODEL, "tiny-online")}
        return len(now) == 2 and not now & before

    async with Load(stack).running() as load:
        await asyncio.to_thread(subprocess.run, [*serve, "-a", dashboard], timeout=60, check=True)
        await asyncio.to_thread(stack.wait, "new replicas", replaced, 90, 0.5)
        done = load.streams
        await asyncio.to_thread(stack.wait, "streams go on", lambda: load.streams > done + 2 * CLIENTS, 30)
    await _nothing_held(stack)


def _wait_for_replicas(stack: Stack, count: int) -> None:
    stack.wait(f"{count} replicas", lambda: len(stack.replicas(MODEL, "tiny-online")) >= count, 60)


async def _nothing_held(stack: Stack) -> None:
    def running_now() -> int:
        return sum(replica["running"] for replica in stack.status(MODEL)["replicas"])

    await asyncio.to_thread(stack.wait, "leases given back", lambda: running_now() == 0, 15)

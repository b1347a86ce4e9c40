"""Engines forked from a host that has imported them: they are as any others, and nothing of them outlives its owner."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cluster.coldstart import fork_host
from cluster.coldstart.fork_server import ForkServer, ForkServerError, plan_for
from cluster.config import DeploymentConfig
from cluster.engines import EngineServer, HealthPolicy, LaunchSpec, build_spec, new_api_key, read_load
from cluster.engines.guard import descendants
from tests.unit.engines.processes import all_gone, command_line, eventually

REPO = Path(__file__).parents[3]
MODULE = "tests.support.scripted_engine"
PRELOADS = {MODULE: REPO / "tests" / "support" / "forkable.py"}
LOG = logging.getLogger("test.fork")
BRISK = HealthPolicy(interval_s=0.1, timeout_s=0.5, failures=2)


def spec_maker(env: dict[str, str] | None = None, start_timeout_s: float = 30.0, **args: Any) -> Any:
    settings = {
        "kind": "vllm",
        "args": args,
        "env": {"PYTHONPATH": str(REPO), **(env or {})},
        "start_timeout_s": start_timeout_s,
        "entrypoint": ["python", "-m", MODULE],
    }
    deployment = DeploymentConfig.model_validate({"model": "m", "serves": ["online"], "engine": settings})
    key = new_api_key()
    return lambda port: build_spec(deployment, "m", "/models/m", "127.0.0.1", port, key)


def host_of(make_spec: Callable[[int], LaunchSpec]) -> ForkServer:
    plan = plan_for(make_spec(0), PRELOADS)
    assert plan is not None
    return ForkServer(plan, LOG)


@pytest.fixture
async def host() -> AsyncIterator[ForkServer]:
    server = host_of(spec_maker())
    try:
        await server.until_ready(30)
        yield server
    finally:
        await server.stop()


MakeServer = Callable[..., EngineServer]


@pytest.fixture
async def server_of(host: ForkServer) -> AsyncIterator[MakeServer]:
    servers: list[EngineServer] = []

    def make(make_spec: Callable[[int], LaunchSpec], **more: Any) -> EngineServer:
        settings: dict[str, Any] = {"health": BRISK, "stop_grace_s": 3.0, "fork_host": host.socket, **more}
        servers.append(EngineServer(make_spec, LOG, **settings))
        return servers[-1]

    yield make
    for server in servers:
        await server.stop()


@pytest.fixture(autouse=True)
def run_dirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def tree(server: EngineServer) -> list[int]:
    assert server.pid is not None
    return [server.pid, *descendants(server.pid)]


async def ask(server: EngineServer, key: str | None = None, **more: Any) -> int:
    headers = {"Authorization": f"Bearer {key or server.api_key}"}
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **more}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.base_url}/v1/chat/completions", json=body, headers=headers) as response,
    ):
        await response.read()
        return response.status


def left_in(folder: Path, pattern: str = "*") -> list[Path]:
    return list(folder.glob(pattern))


async def test_a_forked_engine_is_as_any_other(server_of: MakeServer, host: ForkServer, run_dirs: Path) -> None:
    server = server_of(spec_maker())
    await server.start()
    assert server.forked and server.is_alive()
    assert (await ask(server), await ask(server, key="wrong")) == (200, 401)
    async with aiohttp.ClientSession() as session:
        assert (await read_load("vllm", session, server.base_url, server.api_key)).generation_tokens_total > 0
    pids = tree(server)
    guard, engine = pids
    assert guard in descendants(host.pid) and b"guard.py" in command_line(guard)
    assert not any(server.api_key.encode() in command_line(pid) for pid in pids)
    assert os.getsid(engine) == engine and os.getsid(guard) == guard
    assert host.memory().pss_bytes > 1e6
    await server.stop()
    assert await server.wait_dead() == "stopped" and all_gone(pids, 1) and left_in(run_dirs, "tribes-engine-*") == []
    assert host.is_ready()


async def test_its_output_and_exit_code_are_known(server_of: MakeServer, caplog: Any) -> None:
    server = server_of(spec_maker())
    await server.start()
    with contextlib.suppress(aiohttp.ClientError):
        await ask(server, stream=True, x_script={"die_after_tokens": 3})
    assert "exit code 17" in await asyncio.wait_for(server.wait_dead(), 3)


async def test_an_engine_that_fails_in_a_fork_is_started_cold_and_the_error_is_the_cold_ones(
    server_of: MakeServer, caplog: Any
) -> None:
    from cluster.engines import EngineStartError

    caplog.set_level(logging.INFO)
    with pytest.raises(EngineStartError, match="exit code 1") as caught:
        await server_of(spec_maker(fail_start="torch.OutOfMemoryError: CUDA out of memory.")).start()
    assert caught.value.kind == "out_of_memory"
    assert "the forked engine did not start" in caplog.text


async def test_several_at_once(server_of: MakeServer) -> None:
    servers = [server_of(spec_maker()) for _ in range(3)]
    await asyncio.gather(*(server.start() for server in servers))
    assert all(server.forked for server in servers)
    pids = [pid for server in servers for pid in tree(server)]
    await asyncio.gather(*(server.stop() for server in servers))
    assert all_gone(pids, 1)


async def test_the_hosts_death_costs_speed_only(server_of: MakeServer, host: ForkServer, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    first = server_of(spec_maker())
    await first.start()
    os.kill(host.pid, signal.SIGKILL)
    assert await asyncio.to_thread(all_gone, [host.pid])
    assert await ask(first) == 200
    second = server_of(spec_maker())
    await second.start()
    assert not second.forked and "no engine from the fork host" in caplog.text
    pids = tree(first)
    await first.stop()
    assert await asyncio.to_thread(all_gone, pids)


async def test_a_host_that_is_stopped_leaves_its_engines_alone(server_of: MakeServer, host: ForkServer) -> None:
    server = server_of(spec_maker())
    await server.start()
    await host.stop()
    assert all_gone([host.pid], 1) and not host.is_ready()
    assert await ask(server) == 200


async def test_an_engine_that_hangs_in_a_fork_is_started_cold(run_dirs: Path) -> None:
    make_spec = spec_maker({"FORK_TEST": "stuck"}, start_timeout_s=6.0)
    host = host_of(make_spec)
    server = EngineServer(make_spec, LOG, stop_grace_s=1.0, fork_host=host.socket)
    try:
        await host.until_ready(30)
        await server.start()
        assert not server.forked and await ask(server) == 200
        assert await asyncio.to_thread(eventually, lambda: descendants(host.pid) == [])
    finally:
        await server.stop()
        await host.stop()
    assert left_in(run_dirs) == []


@pytest.mark.parametrize("pid_at", [0, 1], ids=["guard", "engine"])
async def test_a_killed_guard_or_engine_takes_the_tree_with_it(server_of: MakeServer, pid_at: int) -> None:
    server = server_of(spec_maker())
    await server.start()
    pids = tree(server)
    os.kill(pids[pid_at], signal.SIGKILL)
    assert "by itself" in await asyncio.wait_for(server.wait_dead(), 5)
    assert await asyncio.to_thread(all_gone, pids)


async def test_a_stop_that_comes_while_the_engine_starts(server_of: MakeServer, run_dirs: Path) -> None:
    server = server_of(spec_maker(start_delay_ms=60_000))
    task = asyncio.create_task(server.start())
    while server.pid is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    pids = tree(server)
    await server.stop()
    with contextlib.suppress(Exception):
        await task
    assert all_gone(pids, 1) and left_in(run_dirs, "tribes-engine-*") == []


OWNER = """
import asyncio, logging, sys, pathlib, os, time
sys.path.insert(0, {repo!r})
from cluster.engines import EngineServer
from tests.unit.coldstart.test_fork_host import spec_maker
async def main():
    server = EngineServer(spec_maker(), logging.getLogger(), fork_host=pathlib.Path({socket!r}))
    await server.start()
    if {copy} and os.fork() == 0:
        time.sleep(60)  # keeps a copy of everything that is open
    pathlib.Path({told!r} + ".new").write_text(f"{{server.forked}} {{server.pid}}")
    os.replace({told!r} + ".new", {told!r})
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize("copy", [False, True], ids=["alone", "with a copy of its end"])
async def test_an_owner_that_is_killed_takes_its_engine_with_it(host: ForkServer, tmp_path: Path, copy: bool) -> None:
    told = tmp_path / "told"
    code = OWNER.format(repo=str(REPO), socket=str(host.socket), told=str(told), copy=copy)
    owner = await asyncio.to_thread(subprocess.Popen, [sys.executable, "-c", textwrap.dedent(code)])
    try:
        assert await asyncio.to_thread(eventually, told.exists, 30)
        forked, guard = told.read_text().split()
        pids = [int(guard), *descendants(int(guard))]
        copies = descendants(owner.pid)
    finally:
        owner.kill()
        owner.wait(5)
    try:
        assert forked == "True" and len(pids) == 2
        assert await asyncio.to_thread(all_gone, pids)
        assert bool(copies) == copy
    finally:
        for pid in copies:
            os.kill(pid, signal.SIGKILL)


async def test_nonsense_is_refused_and_the_host_goes_on(host: ForkServer, server_of: MakeServer) -> None:
    def send(data: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(host.socket))
            connection.sendall(data)
            return connection.recv(200)

    assert (await asyncio.to_thread(send, b"hello\n")).startswith(b"error ")
    assert b"no descriptor" in await asyncio.to_thread(send, json.dumps({}).encode() + b"\n")
    server = server_of(spec_maker())
    await server.start()
    assert server.forked


async def test_a_host_that_cannot_import_says_why(run_dirs: Path) -> None:
    host = host_of(spec_maker({"FORK_TEST": "fail"}))
    with pytest.raises(ForkServerError, match=r"exit code 1\n  nothing to import"):
        await host.until_ready(30)
    await host.stop()
    assert left_in(run_dirs) == []


def test_a_probe_that_hangs_or_fails_means_no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_host, "PROBE_S", 0.3)
    with pytest.raises(SystemExit, match="hangs"):
        fork_host.prove(lambda: time.sleep(60))
    with pytest.raises(SystemExit, match="fails"):
        fork_host.prove(lambda: sys.exit(1))
    fork_host.prove(lambda: None)


def test_which_engines_share_a_host() -> None:
    def key(**env: str) -> str:
        plan = plan_for(spec_maker(env)(1234), PRELOADS)
        assert plan is not None and "VLLM_API_KEY" not in plan.env and "VLLM_RPC_BASE_PATH" not in plan.env
        return plan.key

    assert key() == key() != key(OMP_NUM_THREADS="1")
    assert plan_for(spec_maker()(1)) is None, "nobody knows what to import for it"

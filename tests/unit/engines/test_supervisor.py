"""EngineServer with the scripted engine: start, health, death, stop, and that nothing is left in any case."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cluster.config import DeploymentConfig
from cluster.engines import EngineServer, EngineStartError, HealthPolicy, LaunchSpec, build_spec, new_api_key, read_load
from cluster.engines import supervisor as supervisor_module
from cluster.engines.guard import descendants
from tests.unit.engines.processes import all_gone, command_line

REPO = str(Path(__file__).parents[3])
LOG = logging.getLogger("test.engine")
BRISK = HealthPolicy(interval_s=0.1, timeout_s=0.5, failures=2)


def spec_maker(kind: str = "vllm", *, start_timeout_s: float = 30.0, **args: Any) -> Callable[[int], LaunchSpec]:
    key = new_api_key()
    settings = {
        "kind": kind,
        "args": args,
        "env": {"PYTHONPATH": REPO},
        "start_timeout_s": start_timeout_s,
        "entrypoint": ["python", "-m", "tests.support.scripted_engine"],
    }
    deployment = DeploymentConfig.model_validate({"model": "m", "serves": ["online"], "engine": settings})
    return lambda port: build_spec(deployment, "m", "/models/m", "127.0.0.1", port, key)


def command_maker(*argv: str, start_timeout_s: float = 10.0) -> Callable[[int], LaunchSpec]:
    def make(port: int) -> LaunchSpec:
        return LaunchSpec(argv, {}, "127.0.0.1", port, new_api_key(), "/m", "m", start_timeout_s)

    return make


MakeServer = Callable[..., EngineServer]


@pytest.fixture
async def server_of() -> AsyncIterator[MakeServer]:
    servers: list[EngineServer] = []

    def make(make_spec: Callable[[int], LaunchSpec], **more: Any) -> EngineServer:
        servers.append(EngineServer(make_spec, LOG, **{"health": BRISK, "stop_grace_s": 3.0, **more}))
        return servers[-1]

    yield make
    for server in servers:
        await server.stop()


@pytest.fixture(autouse=True)
def run_dirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's engines have their private folders."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def modes(folder: Path) -> list[str]:
    """The permissions of everything below a folder."""
    return [oct(path.stat().st_mode)[-3:] for path in folder.rglob("*")]


def tree(server: EngineServer) -> list[int]:
    assert server.pid is not None
    return [server.pid, *descendants(server.pid)]


def engine_pid(server: EngineServer) -> int:
    return tree(server)[2]  # outer guard, inner guard, engine


async def ask(server: EngineServer, key: str | None = None, **more: Any) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {key or server.api_key}"}
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **more}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.base_url}/v1/chat/completions", json=body, headers=headers) as response,
    ):
        return response.status, await response.text()


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
async def test_from_start_to_stop(kind: str, server_of: MakeServer, run_dirs: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    server = server_of(spec_maker(kind))
    assert not server.is_alive()
    await server.start()
    assert server.is_alive() and server.started_in_s is not None and 0 < server.started_in_s < 30
    assert (await ask(server))[0] == 200
    assert (await ask(server, key="wrong"))[0] == 401
    pids = tree(server)
    assert not any(server.api_key.encode() in command_line(pid) for pid in pids)
    assert set(modes(run_dirs)) == ({"700"} if kind == "vllm" else {"700", "600"})
    async with aiohttp.ClientSession() as session:
        load = await read_load(kind, session, server.base_url, server.api_key)
    assert (load.running, load.generation_tokens_total) == (0, 20)
    await server.stop()
    assert not server.is_alive() and await server.wait_dead() == "stopped"
    assert all_gone(pids, 1)
    assert modes(run_dirs) == []
    assert server.api_key not in caplog.text


async def test_stop_is_idempotent_and_may_overlap(server_of: MakeServer) -> None:
    server = server_of(spec_maker())
    await server.start()
    await asyncio.gather(server.stop(), server.stop())
    await server.stop(grace_s=0)


async def test_a_server_that_was_stopped_is_not_started(server_of: MakeServer) -> None:
    server = server_of(spec_maker())
    await server.stop()
    with pytest.raises(RuntimeError, match="once"):
        await server.start()


async def test_the_last_line_says_more_about_a_death(server_of: MakeServer) -> None:
    code = "import sys; sys.argv[1:] = sys.argv[2:]; from tests.support.scripted_engine import main\n"
    code += (
        "import threading, os; threading.Timer(2, lambda: (print('oh no', flush=True), os._exit(3))).start(); main()"
    )
    make = spec_maker()

    def make_spec(port: int) -> LaunchSpec:
        spec = make(port)
        return dataclasses.replace(spec, argv=(sys.executable, "-c", code, *spec.argv[2:]))

    server = server_of(make_spec)
    await server.start()
    assert await asyncio.wait_for(server.wait_dead(), 10) == (
        "the engine ended by itself with exit code 3; its last line: oh no"
    )


async def test_a_server_is_started_once(server_of: MakeServer) -> None:
    server = server_of(spec_maker())
    await server.start()
    with pytest.raises(RuntimeError, match="once"):
        await server.start()


async def test_an_early_exit_is_noticed_at_once_and_explained(server_of: MakeServer, run_dirs: Path) -> None:
    server = server_of(spec_maker("vllm", fail_start="torch.OutOfMemoryError: CUDA out of memory."))
    started = time.monotonic()
    with pytest.raises(EngineStartError, match="exit code 1") as caught:
        await server.start()
    assert time.monotonic() - started < 10
    assert caught.value.kind == "out_of_memory"
    assert "CUDA out of memory" in str(caught.value) and "cure: memory ran out" in str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.kind) == (str(caught.value), "out_of_memory")
    assert modes(run_dirs) == []


async def test_an_interpreter_that_does_not_exist(server_of: MakeServer) -> None:
    with pytest.raises(EngineStartError) as caught:
        await server_of(command_maker("/no/such/python")).start()
    assert caught.value.kind == "no_interpreter"


async def test_a_start_that_takes_too_long_is_given_up_and_cleared(server_of: MakeServer) -> None:
    server = server_of(command_maker("/bin/sleep", "60", start_timeout_s=0.5))
    with pytest.raises(EngineStartError, match=r"not healthy after 0\.5 s") as caught:
        await server.start()
    assert caught.value.kind == "too_slow"
    assert all_gone(tree(server), 1)


async def test_a_cancelled_start_leaves_nothing(server_of: MakeServer, run_dirs: Path) -> None:
    server = server_of(command_maker("/bin/sleep", "60"))
    task = asyncio.create_task(server.start())
    await asyncio.sleep(0.5)
    pids = tree(server)
    assert len(pids) == 3
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all_gone(pids, 1) and modes(run_dirs) == []


async def test_only_the_last_lines_are_reported_and_carriage_returns_end_lines(server_of: MakeServer) -> None:
    code = "print('one', end='\\r'); print('x' * 20000); [print('line', i) for i in range(500)]; print(); print('end')"
    with pytest.raises(EngineStartError) as caught:
        await server_of(command_maker(sys.executable, "-c", code)).start()
    assert len(caught.value.last_lines) == 50 and caught.value.last_lines[-1] == "end"


async def test_another_port_is_tried_when_one_was_taken(server_of: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The taken port even answers: another engine, to which our key means nothing."""
    other = server_of(spec_maker())
    await other.start()
    taken = int(other.base_url.rpartition(":")[2])
    real = supervisor_module.free_port
    ports = iter([taken])
    monkeypatch.setattr(supervisor_module, "free_port", lambda host: next(ports, None) or real(host))
    server = server_of(spec_maker())
    await server.start()
    assert server.base_url != other.base_url and server.is_alive() and other.is_alive()


async def test_ports_that_are_all_taken_are_an_error(server_of: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        monkeypatch.setattr(supervisor_module, "free_port", lambda host: holder.getsockname()[1])
        with pytest.raises(EngineStartError) as caught:
            await server_of(spec_maker()).start()
    assert caught.value.kind == "port_in_use"


async def test_a_death_is_noticed_at_once(server_of: MakeServer) -> None:
    server = server_of(spec_maker(), health=HealthPolicy(interval_s=60))
    await server.start()
    pids = tree(server)
    os.kill(engine_pid(server), signal.SIGKILL)
    assert "exit code 137" in await asyncio.wait_for(server.wait_dead(), 3)
    assert not server.is_alive()
    assert all_gone(pids, 1)


async def test_a_death_during_a_health_check_is_noticed_at_once(server_of: MakeServer) -> None:
    server = server_of(spec_maker(), health=HealthPolicy(interval_s=0.05, timeout_s=60))
    await server.start()
    pid = engine_pid(server)
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    assert "exit code 137" in await asyncio.wait_for(server.wait_dead(), 3)


async def test_an_engine_that_dies_in_a_request(server_of: MakeServer) -> None:
    server = server_of(spec_maker())
    await server.start()
    with contextlib.suppress(aiohttp.ClientError):
        await ask(server, stream=True, x_script={"die_after_tokens": 3})
    assert "exit code 17" in await asyncio.wait_for(server.wait_dead(), 3)


async def test_a_hang_is_a_death_and_is_cleared(server_of: MakeServer) -> None:
    server = server_of(spec_maker("vllm", hang_health_after_s=1.0))
    await server.start()
    pids = tree(server)
    assert "hangs: 2 health checks" in await asyncio.wait_for(server.wait_dead(), 10)
    assert not server.is_alive()
    assert await asyncio.to_thread(all_gone, pids)


async def test_a_single_failed_health_check_is_no_death(server_of: MakeServer) -> None:
    server = server_of(spec_maker(), health=HealthPolicy(interval_s=0.05, timeout_s=0.4, failures=10))
    await server.start()
    pid = engine_pid(server)
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(1)
    os.kill(pid, signal.SIGCONT)
    await asyncio.sleep(0.5)
    assert server.is_alive()


async def test_an_engine_that_ignores_sigterm_is_killed_after_the_grace(server_of: MakeServer) -> None:
    code = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(60)"
    )
    server = server_of(command_maker(sys.executable, "-c", code, start_timeout_s=60), stop_grace_s=60.0)
    task = asyncio.create_task(server.start())
    await asyncio.sleep(1.0)
    pids = tree(server)
    started = time.monotonic()
    await server.stop(grace_s=0.5)
    assert time.monotonic() - started < 5
    assert all_gone(pids, 1)
    with pytest.raises(EngineStartError):
        await task


async def test_tools_of_the_engines_environment_are_found_and_foreign_metrics_are_not(
    server_of: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/somewhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray sets it for its workers
    names = ("PROMETHEUS_MULTIPROC_DIR", "OMP_NUM_THREADS")
    code = f"import os; print(os.environ['PATH'].split(':')[0], *map(os.environ.get, {names}))"
    with pytest.raises(EngineStartError) as caught:
        await server_of(command_maker(sys.executable, "-c", code)).start()
    assert caught.value.last_lines == [f"{Path(sys.executable).parent} None None"]

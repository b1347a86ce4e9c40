"""Fork hosts as a cluster has them, without Ray: when there is one, who may use it, and what a replica does without."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.coldstart import capabilities
from cluster.coldstart.fork_server import PRELOADS, plan_for
from cluster.config import TribesConfig
from cluster.engines import LaunchSpec, build_spec
from serve_apps import fork_hosts
from serve_apps.app import build
from serve_apps.fork_hosts import STARTS, ForkHost, socket_for

REPO = Path(__file__).parents[3]
MODULE = "tests.support.scripted_engine"


def configuration(folder: Path, start: str, **env: str) -> dict[str, Any]:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text("{}")
    engine = {"entrypoint": ["python", "-m", MODULE], "env": {"PYTHONPATH": str(REPO), **env}}
    item = {"model": "m", "serves": ["online"], "engine": {"kind": "vllm", **engine, "start": start}}
    model = {"source": {"kind": "local", "path": str(folder / "model")}}
    config = {"models": {"m": model}, "deployments": {"d": item}, "paths": {"data": str(folder)}}
    return TribesConfig.model_validate(config).model_dump(mode="json")


def spec_of(config: dict[str, Any], folder: Path) -> LaunchSpec:
    deployment = TribesConfig.model_validate(config).deployments["d"]
    return build_spec(deployment, "m", str(folder / "model"), "127.0.0.1", 1, "a-key")


@pytest.fixture
async def host_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Any]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setitem(PRELOADS, MODULE, REPO / "tests" / "support" / "forkable.py")
    made: list[ForkHost] = []

    def make(config: dict[str, Any]) -> ForkHost:
        made.append(ForkHost(config, "d"))
        return made[-1]

    yield make
    for host in made:
        if host._server is not None:
            await host._server.stop()


async def started(host: ForkHost) -> None:
    await host.keep()
    assert host._starting is not None
    await asyncio.wait_for(host._starting, 30)


async def test_a_host_serves_its_environment_and_is_kept(host_of: Any, tmp_path: Path) -> None:
    config = configuration(tmp_path, "auto")
    host = host_of(config)
    plan = plan_for(spec_of(config, tmp_path))
    assert plan is not None and await host.socket(plan.key) is None
    await started(host)
    path = await host.socket(plan.key)
    assert path == str(host._server.socket)
    assert await host.socket("another environment") is None
    await host.keep()
    assert host._starts == 1, "one that runs is left alone"
    os.kill(host._server.pid, signal.SIGKILL)
    await host._server.wait()
    assert await host.socket(plan.key) is None
    await started(host)
    assert await host.socket(plan.key) not in (None, path)


async def test_a_host_that_does_not_come_up_is_given_up(host_of: Any, tmp_path: Path) -> None:
    host = host_of(configuration(tmp_path, "auto", FORK_TEST="fail"))
    for _ in range(STARTS):
        await started(host)
    await host.keep()
    assert host._starts == STARTS and not host._server.is_ready()


async def test_auto_needs_memory(host_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "available_bytes", lambda: 2**30)
    host = host_of(configuration(tmp_path, "auto"))
    await started(host)
    assert host._server is None


async def test_a_replica_without_a_host_starts_cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration(tmp_path, "auto")
    deployment, spec = TribesConfig.model_validate(config).deployments["d"], spec_of(config, tmp_path)
    assert await socket_for(deployment, spec) is None, "nobody knows how to fork this engine"
    monkeypatch.setitem(PRELOADS, MODULE, REPO / "tests" / "support" / "forkable.py")
    asked: list[str] = []

    def get_actor(name: str, namespace: str) -> Any:
        asked.append(name)
        raise ValueError("no such actor")

    monkeypatch.setattr(fork_hosts.ray, "get_actor", get_actor)
    monkeypatch.setattr(fork_hosts.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node"))
    assert await socket_for(deployment, spec) is None
    assert asked and asked[0].startswith("fork-host:node:")
    cold = TribesConfig.model_validate(configuration(tmp_path, "cold")).deployments["d"]
    assert await socket_for(cold, spec) is None and len(asked) == 1


@pytest.mark.parametrize(("start", "there"), [("cold", False), ("auto", True)])
def test_the_application_has_hosts_where_a_deployment_wants_them(tmp_path: Path, start: str, there: bool) -> None:
    app: Any = build(type("Args", (), {"config": configuration(tmp_path, start)})())
    bound = [getattr(item, "_bound_deployment", None) for item in app._bound_deployment.init_args]
    assert ("fork-hosts" in [item.name for item in bound if item is not None]) == there

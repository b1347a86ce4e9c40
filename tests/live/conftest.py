"""One Ray cluster with scripted engines for all live tests of the request path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.config import TribesConfig
from tests.support.stack import REPO, Stack, free_ports, running

IDLE_TIMEOUT_S = 4


def scripted(kind: str, serves: str, itl_ms: int, **more: Any) -> dict[str, Any]:
    return {
        "model": "tiny",
        "serves": [serves],
        "engine": {
            "kind": kind,
            "entrypoint": ["python", "-m", "tests.support.scripted_engine"],
            "env": {"PYTHONPATH": str(REPO)},
            "args": {"itl-ms": itl_ms},
        },
        "resources": {"cpus": 0.1},
        **more,
    }


@pytest.fixture(scope="module")
def scripted_config(tmp_path_factory: pytest.TempPathFactory) -> TribesConfig:
    folder = tmp_path_factory.mktemp("live")
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"architectures": ["Scripted"]}))
    gateway, door, ray, dashboard = free_ports(4)
    idle = {"min": 0, "max": 2, "idle_timeout_s": IDLE_TIMEOUT_S, "wait_target_s": 1, "drain_timeout_s": 30}
    return TribesConfig.model_validate(
        {
            "models": {"tiny": {"source": {"kind": "local", "path": str(model)}, "max_model_len": 2048}},
            "deployments": {
                "tiny-online": scripted("sglang", "online", 5, max_running=8, replicas={"min": 2, "max": 2}),
                "tiny-burst": scripted("vllm", "semi_online", 10, max_running=4, replicas=idle),
            },
            "tenants": {"default": {}, "a": {"weight": 1}, "b": {"weight": 2}, "c": {"weight": 1}},
            "gateway": {"port": gateway, "own_door": {"port": door}},
            "paths": {"data": str(folder / "data"), "models": str(folder / "models")},
            "ray": {"num_cpus": 4, "object_store_gib": 0.2, "port": ray, "dashboard_port": dashboard},
        }
    )


@pytest.fixture(scope="module")
def stack(scripted_config: TribesConfig) -> Iterator[Stack]:
    with running(scripted_config) as stack:
        yield stack

"""A configuration in a temporary folder whose gateway is the fake one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.unit.cli.fake_gateway import FakeGateway, running_gateway


def write_config(folder: Path, gateway_port: int = 8000) -> Path:
    config = {
        "name": "fake",
        "models": {"m": {"source": {"kind": "local", "path": str(folder)}}},
        "deployments": {
            "fast": {"model": "m", "serves": ["online"], "engine": {"kind": "sglang"}},
            "burst": {"model": "m", "serves": ["semi_online"], "engine": {"kind": "vllm"}, "replicas": {"min": 0}},
            "batch": {"model": "m", "serves": ["offline"], "engine": {"kind": "vllm"}},
        },
        "tenants": {"default": {}, "team-b": {"weight": 2, "default_tier": "flex", "limits": {"max_queued": 9}}},
        "gateway": {"port": gateway_port},
        "ray": {"dashboard_port": 1},
        "paths": {"data": str(folder / "data")},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(autouse=True)
def _no_ray_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands would make one in the home folder of whoever runs the tests."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with running_gateway() as running:
        yield running


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    return write_config(tmp_path)


@pytest.fixture
def live_config(tmp_path: Path, gateway: FakeGateway) -> Path:
    """Of the fake gateway, with a default key as `tribes up` leaves it."""
    path = write_config(tmp_path, gateway.port)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "default.key").write_text("sk-default\n")
    return path

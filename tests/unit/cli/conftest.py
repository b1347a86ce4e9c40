"""A configuration in a temporary folder whose gateway is the fake one, and commands against an imitated Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli import batch_control, jobs
from cluster.cli.app import app
from cluster.cli.jobs import JobsClient
from cluster.local import LocalClusterError
from tests.unit.cli.fake_gateway import FakeGateway, running_gateway
from tests.unit.cli.fake_ray import FakeRay


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


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()

    def connect(self: JobsClient, config: object) -> None:
        if not fake.up:
            raise LocalClusterError("no Ray dashboard at http://127.0.0.1:1: run `tribes up` first")
        self._client = fake  # type: ignore[assignment]

    monkeypatch.setattr(JobsClient, "__init__", connect)
    monkeypatch.setattr(jobs, "POLL_S", 0.001)
    monkeypatch.setattr(batch_control, "POLL_S", 0.01)
    return fake


@pytest.fixture
def batch(config_path: Path) -> Any:
    def run(*words: str) -> tuple[int, str]:
        command, *rest = words
        result = CliRunner().invoke(app, ["batch", command, "-c", str(config_path), *rest])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run

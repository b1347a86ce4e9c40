"""`tribes status`: joining what Serve, dispatchers, jobs and the ledger say, and what happens when one is silent."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import status_data
from cluster.cli.app import app
from cluster.cli.status_view import duration
from cluster.config import load_config
from cluster.local import LocalClusterError
from cluster.state import Store, UsageRecord
from tests.unit.cli.fake_gateway import FakeGateway

SERVE_APP = {
    "status": "RUNNING",
    "message": "",
    "deployments": {
        "burst": {
            "status": "HEALTHY",
            "message": "",
            "replicas": [{"replica_id": "r1", "state": "RUNNING", "pid": 42, "node_ip": "10.0.0.1", "start_time_s": 5}],
        },
        "gateway": {"status": "HEALTHY", "replicas": [{"replica_id": "g1", "state": "STARTING"}]},
    },
}
JOB = {
    "id": "raysubmit_1",
    "status": "SUCCEEDED",
    "entrypoint": "python -m batch_jobs.generate " + "x" * 100,
    "message": "",
    "started_at_s": 1000.0,
    "ended_at_s": 1075.0,
    "exit_code": 0,
}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, gateway: FakeGateway, live_config: Path) -> Path:
    """Serve and the Jobs API as fakes; the gateway on loopback; costs in a real store."""
    gateway.replicas = [
        {
            "replica_id": "burst/r1",
            "deployment": "burst",
            "state": "ready",
            "running": 1,
            "age_s": 61.0,
            "cold_start_s": 12.3,
            "kv_usage": 0.25,
        }
    ]
    monkeypatch.setattr(status_data, "app_details", lambda config: SERVE_APP)
    monkeypatch.setattr(status_data, "list_jobs", lambda config, limit: [JOB])
    store = Store(load_config(live_config).state.url)
    store.create()
    now_s = time.time()
    store.touch_replica("burst/r1", "m", "burst", 3.6, now_s - 100, now_s)
    store.add_usage([UsageRecord("q", "team-a", "k", "m", "burst", "semi_online", 10, 0, 5, 0.1, 0.2, 1.0, 200, now_s)])
    return live_config


def status(config_path: Path, *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["status", "-c", str(config_path), *arguments])
    return result.exit_code, result.stdout, result.stderr


def as_json(config_path: Path) -> dict[str, Any]:
    code, output, _ = status(config_path, "--json")
    assert code == 0
    found: dict[str, Any] = json.loads(output)
    return found


def test_json_has_every_source_joined(cluster: Path) -> None:
    found = as_json(cluster)
    burst, front = found["deployments"]
    assert (burst["name"], burst["engine"], burst["serves"], burst["pool"]) == (
        "burst", "vllm", ["semi_online"], "default",
    )  # fmt: skip
    (replica,) = burst["replicas"]
    assert (replica["state"], replica["serve_state"], replica["cold_start_s"]) == ("ready", "RUNNING", 12.3)
    assert front["model"] is None and front["replicas"][0]["state"] == "starting"
    assert found["queues"][0]["tenants"] == [
        {"class": "semi_online", "tenant": "team-a", "waiting": 3, "running": 0, "service": 10.0},
        {"class": "semi_online", "tenant": "team-b", "waiting": 0, "running": 1, "service": 20.5},
    ]
    assert found["costs"][0]["tenant"] == "team-a" and found["costs"][0]["usd"] == pytest.approx(0.1, rel=0.01)
    assert found["jobs"] == [JOB] and found["problems"] == []


def test_the_page_shows_every_table(cluster: Path) -> None:
    code, output, _ = status(cluster)
    assert code == 0
    for part in ("Deployments", "burst/r1", "12 s", "team-a", "raysubmit_1", "1 min 15 s", "Costs", "0.10"):
        assert part in output, part


def test_a_silent_gateway_is_a_problem_not_the_end(cluster: Path, gateway: FakeGateway) -> None:
    path = cluster.with_name("other.yaml")
    path.write_text(cluster.read_text().replace(str(gateway.port), "2"))
    found = as_json(path)
    assert "does not answer" in found["problems"][0] and found["queues"] == []
    assert found["deployments"][0]["replicas"][0]["state"] == "running"


def test_a_missing_key_is_a_problem(cluster: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "default.key").unlink()
    assert "tribes up" in as_json(cluster)["problems"][0]


def test_an_application_that_is_not_deployed_is_said(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_data, "app_details", lambda config: {})
    found = as_json(cluster)
    assert found["application"]["status"] == "NOT_DEPLOYED" and "tribes up" in found["problems"][0]


def test_without_ray_there_is_one_line(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(config: object) -> None:
        raise LocalClusterError("no Ray dashboard at http://127.0.0.1:1: run `tribes up` first")

    monkeypatch.setattr(status_data, "app_details", nothing)
    code, output, error = status(cluster)
    assert (code, output) == (1, "") and "run `tribes up` first" in error


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3725, "1 h 2 min")],
)
def test_durations(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown

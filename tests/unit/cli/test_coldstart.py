"""`tribes coldstart` on the scripted engine: every rung of a CPU is measured, and what the others lack is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.coldstart.fork_server import PRELOADS

REPO = Path(__file__).parents[3]
MODULE = "tests.support.scripted_engine"
run = CliRunner().invoke


@pytest.fixture
def config_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    engine = {"entrypoint": ["python", "-m", MODULE], "env": {"PYTHONPATH": str(REPO)}, "args": {"start-delay-ms": 300}}
    config = {
        "models": {"m": {"source": {"kind": "local", "path": str(model)}}},
        "deployments": {
            "v": {"model": "m", "serves": ["online"], "engine": {"kind": "vllm", **engine}},
            "s": {"model": "m", "serves": ["semi_online"], "engine": {"kind": "sglang", **engine}},
        },
        "paths": {"data": str(tmp_path / "data")},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_the_ladder_of_a_cpu(config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRELOADS, MODULE, REPO / "tests" / "support" / "forkable.py")
    result = run(app, ["coldstart", "-c", str(config_path), "-d", "v", "--json", str(tmp_path / "out.json")])
    assert result.exit_code == 0, result.output
    (found,) = json.loads((tmp_path / "out.json").read_text())["deployments"]
    rungs = {rung["rung"]: rung for rung in found["rungs"]}
    assert rungs["asleep"]["why_not"] and rungs["snapshot"]["why_not"]
    cold, forked, resident = rungs["cold"], rungs["forked"], rungs["resident"]
    assert resident["first_token_s"] < 0.3 < min(forked["first_token_s"], cold["first_token_s"])
    assert sum(cold["stages"].values()) == pytest.approx(cold["routable_s"], rel=0.01)
    assert cold["held_gib"] == 0 < forked["held_gib"] and forked["shared_gib"] > 0
    assert (found["best"], found["best_holding_nothing"]) == ("resident", "cold")
    assert not list(tmp_path.glob("tribes-*")), "nothing is left"


def test_an_engine_that_is_not_forked(config_path: Path) -> None:
    result = run(app, ["coldstart", "-c", str(config_path), "-d", "s"])
    assert result.exit_code == 0 and "entrypoint" in result.output and "cold" in result.output


def test_an_engine_that_does_not_start_and_a_deployment_that_is_not_there(config_path: Path) -> None:
    text = config_path.read_text()
    config_path.write_text(text.replace("start-delay-ms: 300", "fail-start: no such model"))
    result = run(app, ["coldstart", "-c", str(config_path), "-d", "v"])
    assert result.exit_code == 1 and "exit code 1" in result.output
    result = run(app, ["coldstart", "-c", str(config_path), "-d", "other"])
    assert result.exit_code == 1 and "unknown deployment" in result.output

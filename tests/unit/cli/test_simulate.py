"""`tribes simulate`: tables, JSON, a page, two configurations side by side, and errors that name the cure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli.app import app

run = CliRunner().invoke
SETTINGS = {
    "engines": {
        "*": {"step": {"base_s": 0.01, "prefill_s_a_token": 1e-4}, "cold_starts": [{"name": "c", "seconds": 2}]}
    },
    "loads": [
        {"tenant": name, "requests_per_s": 2, "prompt_tokens": {"mean": 100}, "output_tokens": {"mean": 20}}
        for name in ("a", "b")
    ],
}


def config(folder: Path, name: str, **replicas: int) -> Path:
    deployment = {"model": "m", "serves": ["online"], "engine": {"kind": "vllm"}, "replicas": replicas}
    path = folder / f"{name}.yaml"
    source = {"kind": "huggingface", "id": "org/m"}
    path.write_text(yaml.safe_dump({"models": {"m": {"source": source}}, "deployments": {"d": deployment}}))
    return path


def settings(folder: Path, **changes: Any) -> Path:
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, **changes}))
    return path


def test_two_configurations_under_one_drawn_load(tmp_path: Path) -> None:
    one, two = config(tmp_path, "one", min=1, max=1), config(tmp_path, "two", min=0, max=3)
    words = ["simulate", str(one), "--compare", str(two), "--settings", str(settings(tmp_path)), "--seconds", "30"]
    words += ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]
    done = run(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "Classes" in done.output and "Jain" in done.output and "Deployments" in done.output
    data = json.loads((tmp_path / "r.json").read_text())
    first, second = data["simulations"]
    assert [first["name"], second["name"]] == ["one", "two"]
    assert first["requests"] == second["requests"] > 60
    assert first["classes"]["online"]["wait"]["p50"] < second["classes"]["online"]["wait"]["p99"]
    page = (tmp_path / "r.html").read_text()
    assert page.count("data:image/svg+xml") == 4 and "one and two" in page and "decode_s_a_request" in page
    again = run(app, words, catch_exceptions=False)
    assert again.exit_code == 0 and json.loads((tmp_path / "r.json").read_text()) == data


def test_a_trace_with_a_built_in_engine(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrived_at_s,tenant,prompt_tokens,output_tokens\n0,x,50,5\n1,x,60,6\n")
    words = ["simulate", str(config(tmp_path, "one", min=1, max=1)), "--trace", str(trace)]
    done = run(app, [*words, "--engine", "llama-3.1-8b-h100-tp2"], catch_exceptions=False)
    assert done.exit_code == 0 and "100.0%" in done.output
    measured = tmp_path / "c.json"
    step = {"base_s": 9, "prefill_s_a_token": 0, "decode_s_a_request": 0, "decode_s_a_kv_token": 0}
    measured.write_text(json.dumps({"step": step, "kv_tokens": 4096}))
    slow = run(app, [*words, "--engine", str(measured)], catch_exceptions=False)
    assert slow.exit_code == 0 and "100.0%" not in slow.output


@pytest.mark.parametrize(
    ("changes", "more", "says"),
    [
        ({"loads": []}, [], "give --trace FILE"),
        ({"engines": {}}, [], "with --engine"),
        ({"engines": {"x": {"profile": "llama-2-7b-a10g"}}}, [], "engines.x is no deployment; the deployments are d"),
        ({"nonsense": 1}, [], "nonsense"),
        ({}, ["--seconds", "-1"], "above 0"),
        ({}, ["--trace", "nowhere.csv"], "check the path"),
        ({}, ["--engine", "nothing"], "the engines are"),
    ],
)
def test_what_cannot_be_simulated_says_why(tmp_path: Path, changes: dict[str, Any], more: list[str], says: str) -> None:
    words = ["simulate", str(config(tmp_path, "one", min=1, max=1)), "--settings", str(settings(tmp_path, **changes))]
    done = run(app, [*words, *more], env={"COLUMNS": "400"})
    assert done.exit_code == 1 and says in done.output

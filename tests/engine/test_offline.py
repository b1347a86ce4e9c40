"""Offline jobs on real vLLM, through the command line: answers, bad rows, and an engine that is killed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from batch_jobs.output.lock import process_start
from cluster.config import load_config
from cluster.engines.guard import descendants
from cluster.models import prepare_model
from tests.support.lora import random_adapter
from tests.support.offline_jobs import output_rows, write_jsonl

pytestmark = [pytest.mark.engine, pytest.mark.live, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[2]
MODEL = "smollm2-135m"


def write_config(folder: Path, part_rows: int, **engine_args: Any) -> Path:
    """The repository's model and offline deployment, on a Ray of this test's own."""
    local = load_config(ROOT / "configs" / "local.yaml")
    (name, deployment), *_ = local.offline_deployments(MODEL).items()
    settings: dict[str, Any] = {
        "models": {MODEL: local.models[MODEL].model_dump(mode="json")},
        "deployments": {name: deployment.model_dump(mode="json", exclude_defaults=True)},
        "pools": {deployment.pool: {"usd_per_hour": 0.36}},
        "paths": {"models": str(local.paths.models)},
        "offline": {"part_rows": part_rows},
        "ray": {"address": "local", "num_cpus": 4, "object_store_gib": 0.3},
    }
    settings["deployments"][name]["engine"]["args"] |= engine_args
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def model_folder() -> Path:
    local = load_config(ROOT / "configs" / "local.yaml")
    folder = prepare_model(MODEL, local.models[MODEL], local.paths, print).folder
    assert folder is not None
    return folder


GREEDY = ("--max-tokens", "16", "--temperature", "0")


def start(folder: Path, source: Path, config: Path, options: Sequence[str] = GREEDY) -> subprocess.Popen[bytes]:
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [
                sys.executable, "-m", "batch_jobs.generate", "--input", str(source), "--output", str(folder / "out"),
                "--config", str(config), "--engine-logs", *options,
            ],
            cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def until(condition: Callable[[], Any], within_s: float, what: str) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"never: {what}"
        time.sleep(0.05)


def test_answers_and_bad_rows(tmp_path: Path) -> None:
    questions = ["What is the capital of France?", *(f"Say something about the number {i}." for i in range(22))]
    rows = [{"id": f"q{i}", "messages": [{"role": "user", "content": text}]} for i, text in enumerate(questions)]
    rows.append({"id": "raw", "prompt": "The capital of France is"})
    rows.append(
        {"id": "choice", "prompt": "Red or blue?", "params": {"structured_outputs": {"choice": ["red", "blue"]}}}
    )
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    response_format = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    number = {"role": "user", "content": "Give a number."}
    rows.append({"id": "schema", "messages": [number], "params": {"response_format": response_format}})
    rows.append({"id": "short", "prompt": "Count: one, two,", "params": {"max_tokens": 3}})
    rows.append({"id": "again", "messages": rows[0]["messages"]})
    rows.append({"id": "adapted", "prompt": "The capital of France is", "lora": "odd"})
    bad = [
        {"id": "long", "prompt": "word " * 20_000},
        {"id": "empty", "prompt": ""},
        {"id": "params", "prompt": "x", "params": {"max_tokens": -1}},
        {"id": "nobody", "prompt": "x", "lora": "even"},
    ]
    adapter = random_adapter(model_folder(), tmp_path / "adapter", scale=0.5)
    config = write_config(tmp_path, 256, enable_lora=True, max_loras=2, lora_modules=[f"odd={adapter}"])
    job = start(tmp_path, write_jsonl(tmp_path / "in.jsonl", [*rows, *bad]), config)
    try:
        assert job.wait(380) == 0, (tmp_path / "log").read_text()
    finally:
        job.kill()
    answers = {row["id"]: row for row in output_rows(tmp_path / "out")}
    assert sorted(answers) == sorted(row["id"] for row in rows + bad)
    assert "Paris" in answers["q0"]["output"]
    assert all(0 < answers[str(row["id"])]["output_tokens"] <= 16 for row in rows)
    assert answers["choice"]["output"] in ("red", "blue") and json.loads(answers["schema"]["output"])["n"] in (1, 2)
    assert answers["short"]["output_tokens"] == 3 and answers["short"]["finish_reason"] == "length"
    assert {answers["again"]["duplicate_of"], answers["q0"]["duplicate_of"]} in ({"q0", None}, {"again", None})
    assert answers["again"]["output"] == answers["q0"]["output"]
    assert answers["adapted"]["output"] != answers["raw"]["output"]
    assert answers["nobody"]["error"]["type"] == "invalid_params"
    assert (
        answers["params"]["error"]["type"] == "invalid_request"
        and "max_tokens" in answers["params"]["error"]["message"]
    )
    assert answers["long"]["error"]["type"] == "prompt_too_long"
    assert answers["empty"]["error"]["type"] == "missing_prompt"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["complete"] and report["ok"] == 29 and report["duplicates"] == 1 and report["run"]["usd_per_mtok"] > 0


def test_embeddings_to_parquet(tmp_path: Path) -> None:
    """Of the same model: vLLM pools the last hidden state of a language model when it is told to."""
    config = write_config(tmp_path, 256, runner="pooling", convert="embed")
    rows = [{"id": f"r{i}", "prompt": text} for i, text in enumerate(["a cat", "a kitten", "tax law", "a cat"])]
    options = ["--task", "embed", "--format", "parquet"]
    job = start(tmp_path, write_jsonl(tmp_path / "in.jsonl", rows), config, options)
    try:
        assert job.wait(380) == 0, (tmp_path / "log").read_text()
    finally:
        job.kill()
    table = pa.concat_tables([pq.read_table(part) for part in (tmp_path / "out").glob("part-*.parquet")])
    vectors = {row["id"]: row["output"] for row in table.to_pylist()}
    assert table.schema.field("output").type == pa.list_(pa.float32())
    assert {len(vector) for vector in vectors.values()} == {576}
    assert vectors["r0"] == vectors["r3"] and cosine(vectors["r0"], vectors["r1"]) > cosine(
        vectors["r0"], vectors["r2"]
    )


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def test_a_killed_engine_actor_takes_its_engine_along_and_the_job_goes_on(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "prompt": f"Write about the number {i}:"} for i in range(60)]
    config = write_config(tmp_path, 5, max_num_seqs=4)
    job = start(tmp_path, write_jsonl(tmp_path / "in.jsonl", rows), config)
    try:
        until(lambda: output_rows(tmp_path / "out"), 200, (tmp_path / "log").read_text())
        below = descendants(job.pid)
        actors = [pid for pid in below if "EngineActor" in title(pid)]
        engines = [pid for pid in below if "VLLM::" in title(pid)]
        assert len(actors) == 1 and engines
        os.kill(actors[0], signal.SIGKILL)
        until(lambda: not any(process_start(pid) for pid in engines), 10, "vLLM's processes end with their actor")
        assert job.wait(200) == 0, (tmp_path / "log").read_text()
    finally:
        job.kill()
    assert sorted(row["id"] for row in output_rows(tmp_path / "out")) == sorted(row["id"] for row in rows)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["run"]["engines_started"] == 2

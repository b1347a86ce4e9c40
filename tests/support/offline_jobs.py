"""What the tests of offline jobs share: a config with one offline deployment, inputs, and reading the output back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from batch_jobs.request import JobRequest

SCRIPTED = "tests.support.scripted_offline_engine:ScriptedEngine"


def write_config(folder: Path, *, engines: int = 1, part_rows: int = 10, **engine_args: Any) -> Path:
    """A config whose model `m` is answered by the scripted engine."""
    (folder / "journal").mkdir(exist_ok=True)
    deployment = {
        "model": "m",
        "serves": ["offline"],
        "engine": {"kind": "vllm", "args": {"journal": str(folder / "journal"), "max-num-seqs": 4} | engine_args},
        "resources": {"cpus": 1},
        "replicas": {"min": engines, "max": engines},
    }
    config = {
        "models": {
            "m": {"source": {"kind": "local", "path": str(folder)}},
            "served-only": {"source": {"kind": "local", "path": str(folder)}},
        },
        "deployments": {
            "batch": deployment,
            "online": {"model": "served-only", "serves": ["online"], "engine": {"kind": "vllm"}},
        },
        "pools": {"default": {"usd_per_hour": 3.6}},
        "offline": {"part_rows": part_rows, "part_seconds": 1},
        # Its own Ray: without an address the job would join any cluster that happens to run on this machine.
        "ray": {"address": "local", "num_cpus": 4, "object_store_gib": 0.3},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def request(folder: Path, source: Path, **options: Any) -> JobRequest:
    config = options.pop("config_path", None) or folder / "config.yaml"
    return JobRequest(
        inputs=(str(source),),
        output=str(options.pop("output", folder / "out")),
        config_path=str(config),
        engine_class=SCRIPTED,
        **options,
    )


def output_rows(output: Path) -> list[dict[str, Any]]:
    """All rows of all committed parts."""
    return [json.loads(line) for part in sorted(output.glob("part-*.jsonl")) for line in part.read_text().splitlines()]


def engine_pids(folder: Path) -> list[int]:
    """Engine processes in the order they started."""
    starts = sorted((folder / "journal").glob("start-*"), key=lambda path: path.stat().st_mtime)
    return [int(path.name.split("-")[1]) for path in starts]


def calls(folder: Path) -> list[str]:
    """Prompts in the order that engines began them, repeated work included."""
    return [json.loads(line) for path in (folder / "journal").glob("calls-*") for line in path.read_text().splitlines()]

"""Offline jobs run as a user runs them: the command line, in a process of its own.

Role: start, watch, kill and read back jobs. Owns: the driver's process. Must not know: Ray, what a job is about.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from batch_jobs.output.lock import process_start
from tests.support.offline_jobs import SCRIPTED, output_rows

ROOT = Path(__file__).parents[2]


def command(folder: Path, source: Path | str, *options: str, output: str | None = None) -> list[str]:
    return [
        sys.executable, "-m", "batch_jobs.generate", "--input", str(source), "--output", output or str(folder / "out"),
        "--config", str(folder / "config.yaml"), "--engine-class", SCRIPTED, *options,
    ]  # fmt: skip


class Driver:
    """A job's driver process; its output goes to a file, as a full pipe would stop it."""

    def __init__(self, folder: Path, source: Path | str, *options: str, output: str | None = None) -> None:
        self.folder = folder
        self.log = folder / f"driver-{time.time_ns()}.log"
        env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"COLUMNS": "160"}
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                command(folder, source, *options, output=output),
                cwd=ROOT,
                env=env,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> int:
        try:
            return self.process.wait(150)
        finally:
            self.end()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def until(self, condition: Callable[[], Any], what: str) -> None:
        deadline_s = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None, f"the driver ended before {what}: {self.text()}"
            assert time.monotonic() < deadline_s, f"never: {what}: {self.text()}"
            time.sleep(0.05)

    def parts(self) -> int:
        return len(list((self.folder / "out").glob("part-*")))

    def text(self) -> str:
        return self.log.read_text()


def run(folder: Path, source: Path | str, *options: str, output: str | None = None) -> str:
    driver = Driver(folder, source, *options, output=output)
    assert driver.wait() == 0, driver.text()
    return driver.text()


def report(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    return loaded


def pool_reports(folder: Path) -> dict[str, dict[str, Any]]:
    return {pool["name"]: pool for pool in report(folder)["pools"]}


def assert_each_once(found: list[str], ids: list[str]) -> None:
    counts = Counter(found)
    assert sorted(counts) == sorted(ids), "lost or invented rows"
    assert max(counts.values()) == 1, [row_id for row_id, count in counts.items() if count > 1]


def assert_every_row_once(folder: Path, ids: list[str]) -> list[dict[str, Any]]:
    rows = output_rows(folder / "out")
    assert_each_once([row["id"] for row in rows], ids)
    return rows


def gone(pids: list[int], within_s: float = 20.0) -> bool:
    deadline_s = time.monotonic() + within_s
    while any(process_start(pid) for pid in pids):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.1)
    return True


def write_pools(
    folder: Path, address: str, pools: dict[str, dict[str, Any]], *, labels: bool = True, part_rows: int = 10
) -> Path:
    """A config whose model `m` has a deployment in each of `pools`: arguments of its scripted engine, and optionally
    `engines`, `price` and `start_timeout_s`. `labels`: a pool's nodes are those that are labelled `pool=<its name>`."""
    (folder / "journal").mkdir(exist_ok=True)
    deployments, places = {}, {}
    for name, given in pools.items():
        args = {"journal": str(folder / "journal"), "max-num-seqs": 4} | given
        engines = args.pop("engines", 1)
        places[name] = {"usd_per_hour": args.pop("price", 1.0)} | ({"labels": {"pool": name}} if labels else {})
        deployments[name] = {
            "model": "m",
            "serves": ["offline"],
            "engine": {"kind": "vllm", "start_timeout_s": args.pop("start_timeout_s", 120), "args": args},
            "resources": {"cpus": 1},
            "replicas": {"min": engines, "max": engines},
            "pool": name,
        }
    config = {
        "models": {"m": {"source": {"kind": "local", "path": str(folder)}}},
        "deployments": deployments,
        "pools": places,
        "offline": {"part_rows": part_rows, "part_seconds": 1},
        "ray": {"address": address},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path

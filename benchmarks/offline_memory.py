"""Does the memory of an offline job grow with its input? The same job over 10 thousand and over 1 million tiny rows.

A scripted engine answers at once, so that only the job's own machinery is measured: driver, ledger, engine process and
reading tasks. Every second the resident memory (PSS: shared pages counted once) of each of the job's processes is read;
a role's figure is its peak. `python -m benchmarks.offline_memory --json FILE [--quick]`
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
import yaml
from rich.console import Console

from benchmarks.report import Report

FEW, MANY, QUICK_MANY = 10_000, 1_000_000, 100_000
ROLES = {"LedgerActor": "ledger", "EngineActor": "engine", "ReadChunk": "reader", "batch_jobs.generate": "driver"}
LOOK_S = 1.0
BAR_MIB = 200.0
TIMEOUT_S = 1800.0
console = Console(stderr=True)


def main(
    json_path: Annotated[Path, typer.Option("--json", help="Where the result goes.")],
    quick: Annotated[bool, typer.Option(help="A hundred thousand rows instead of a million.")] = False,
) -> None:
    many = QUICK_MANY if quick else MANY
    config = {"rows": [FEW, many], "engine": "tests.support.scripted_offline_engine:ScriptedEngine"}
    report = Report("offline_memory", "python -m benchmarks.offline_memory " + " ".join(sys.argv[1:]), config)
    with tempfile.TemporaryDirectory() as folder:
        for side, rows in (("few", FEW), ("many", many)):
            figures = run(Path(folder) / side, rows)
            report.add(0, side, **figures)
            console.log(f"{rows} rows: {figures}")
    for role in ("driver", "ledger", "engine"):
        report.compare(f"{role}_growth_mib", f"{role}_mib", "many", "few", lambda many, few: many - few)
        report.bar(f"{role}_growth_mib", f"<= {BAR_MIB:g}", lambda got: got <= BAR_MIB)
    report.write(json_path)
    for name, ratio in report.ratios.items():
        console.print(f"{name}: {ratio['median']:.4g}")


def run(folder: Path, rows: int) -> dict[str, Any]:
    folder.mkdir()
    with (folder / "in.jsonl").open("w") as file:
        file.writelines(json.dumps({"id": f"row-{i}", "prompt": f"tiny {i}"}) + "\n" for i in range(rows))
    engine = {"kind": "vllm", "args": {"max_num_seqs": 512}}
    config = {
        "models": {"m": {"source": {"kind": "local", "path": str(folder)}}},
        "deployments": {"engine": {"model": "m", "serves": ["offline"], "engine": engine}},
        "offline": {"part_rows": 5000},
        "ray": {"address": "local", "num_cpus": 4, "object_store_gib": 0.3},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [
        sys.executable, "-m", "batch_jobs.generate", "--input", str(folder / "in.jsonl"),
        "--output", str(folder / "out"), "--config", str(folder / "config.yaml"), "--temperature", "0",
        "--engine-class", "tests.support.scripted_offline_engine:ScriptedEngine",
    ]  # fmt: skip
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        peaks = Peaks(process.pid)
        try:
            code = process.wait(TIMEOUT_S)
        finally:
            process.kill()
            peaks.stop()
    if code:
        raise RuntimeError((folder / "log").read_text())
    report = json.loads((folder / "out" / "report.json").read_text())
    seconds = report["run"]["seconds"]
    return {"rows": rows, "seconds": seconds, "rows_per_s": rows / seconds} | peaks.mib


class Peaks:
    """Peak PSS by role, in MiB, of a process and all below it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stopped = threading.Event()
        self.mib: dict[str, float] = {}
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(LOOK_S):
            with contextlib.suppress(psutil.NoSuchProcess):
                job = psutil.Process(self._pid)
                for process in [job, *job.children(recursive=True)]:
                    self._look(process)

    def _look(self, process: psutil.Process) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            title = " ".join(process.cmdline())
            role = next((role for words, role in ROLES.items() if words in title), None)
            if role is not None:
                name = f"{role}_mib"
                self.mib[name] = max(self.mib.get(name, 0.0), process.memory_full_info().pss / 2**20)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


if __name__ == "__main__":
    typer.run(main)

"""How much memory does the default cluster take when everything runs at once?

Starts configs/local.yaml, sends a burst that brings both semi-online replicas up, and runs an offline job beside it
while the online replica answers. Sums the proportional set size (PSS: shared pages counted once) of every process of
the run, once a second; the peak counts. `python -m benchmarks.footprint --json FILE`
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.load import Target, measure
from benchmarks.report import Report
from cluster.config import TribesConfig, load_config
from cluster.local import processes, read_run
from cluster.local.auth import enable_token_auth
from cluster.local.deploy import dashboard_url
from cluster.local.isolate import isolated
from cluster.local.up import Started, down, up

LIMIT_GB = 14.0
ROWS, ROW_TOKENS = 150, 32
TIMEOUT_S = 420.0
console = Console(stderr=True)


def main(
    json_path: Annotated[Path, typer.Option("--json", help="Where the result goes.")],
    config_path: Annotated[Path, typer.Option("--config")] = Path("configs/local.yaml"),
) -> None:
    enable_token_auth()
    with tempfile.TemporaryDirectory() as folder:
        config = isolated(load_config(config_path), Path(folder))
        started = up(config, console.log)
        try:
            report = asyncio.run(_run(config, started, Path(folder)))
        finally:
            down(config, 10, console.log)
    report.write(json_path)
    console.print(f"peak {report.ratios['peak_pss_gb']['median']:.2f} GB")


async def _run(config: TribesConfig, started: Started, folder: Path) -> Report:
    report = Report(
        "footprint", "python -m benchmarks.footprint " + " ".join(sys.argv[1:]), {"local": str(config.name)}
    )
    target, model = Target(started.api_url.removesuffix("/v1"), started.api_key), next(iter(config.models))
    job = await asyncio.to_thread(_submit, config, folder)
    burst = asyncio.create_task(measure(target, model, [f"Tell {n}." for n in range(64)], 64, 64, service_tier="flex"))
    online = asyncio.create_task(measure(target, model, [f"Say {n}." for n in range(40)], 2, 64))
    run = read_run(config)
    assert run is not None
    deadline = time.monotonic() + TIMEOUT_S
    second = 0
    while time.monotonic() < deadline:
        report.add(second, "local", **_pss_gb(run.marker))
        console.log(report.runs[-1])
        second += 1
        if burst.done() and online.done() and await asyncio.to_thread(_finished, config, job):
            break
        await asyncio.sleep(1)
    await asyncio.gather(burst, online)
    peak = max(run["total_gb"] for run in report.runs)
    report.ratios["peak_pss_gb"] = {"median": peak, "min": peak, "max": peak}
    report.bar("peak_pss_gb", f"< {LIMIT_GB:g}", lambda value: value < LIMIT_GB)
    return report


def _submit(config: TribesConfig, folder: Path) -> str:
    from ray.job_submission import JobSubmissionClient

    rows = [{"id": str(n), "prompt": f"Something about {n}:"} for n in range(ROWS)]
    (folder / "in.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json", exclude={"source_path"})))
    command = (
        f"{sys.executable} -m batch_jobs.generate --config {folder}/config.json --input {folder}/in.jsonl "
        f"--output {folder}/out --max-tokens {ROW_TOKENS}"
    )
    return str(JobSubmissionClient(dashboard_url(config)).submit_job(entrypoint=command))


def _finished(config: TribesConfig, job: str) -> bool:
    from ray.job_submission import JobSubmissionClient

    return bool(JobSubmissionClient(dashboard_url(config)).get_job_status(job).is_terminal())


def _pss_gb(marker: str) -> dict[str, float]:
    """PSS in GB (10^9 bytes) of every process of the run, by what it belongs to."""
    groups = {"engines_gb": 0.0, "ray_and_gateway_gb": 0.0}
    for pid in processes.marked_pids(marker):
        with contextlib.suppress(OSError, ValueError, IndexError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            pss_kib = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            command = Path(f"/proc/{pid}/cmdline").read_bytes().lower()
            engine = any(name in command for name in (b"vllm", b"sglang", b"spawn_main"))
            groups["engines_gb" if engine else "ray_and_gateway_gb"] += pss_kib * 1024 / 1e9
    return {**groups, "total_gb": sum(groups.values())}


if __name__ == "__main__":
    typer.run(main)

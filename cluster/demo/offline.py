"""Offline work: a job over real text through the Ray Jobs API. Owns: its folder. Must not know: what is in a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.cli.jobs import JobsClient, entrypoint
from cluster.config import TribesConfig
from cluster.demo.corpus import offline_rows, write_rows
from cluster.local import LocalClusterError

MAX_TOKENS = 48
GREEDY = ("--temperature", "0")
LAST_LINES = 15


@dataclass(frozen=True, slots=True)
class OfflineResult:
    """The finished job: its report.json, and one answered row."""

    job_id: str
    report: dict[str, Any]
    sample: dict[str, str]


def run_offline(
    config: TribesConfig, model: str, folder: Path, progress: Callable[[str], None], timeout_s: float
) -> OfflineResult:
    """Write the rows, submit the job, follow its log to the end. LocalClusterError when it fails."""
    assert config.source_path is not None
    source, output = folder / "input.jsonl", folder / "answers"
    rows = offline_rows()
    write_rows(source, rows)
    command = entrypoint(config.source_path, str(source), str(output), model=model, max_tokens=MAX_TOKENS, extra=GREEDY)
    jobs = JobsClient(config)
    job_id = jobs.submit(command, {"tribes": "demo"})
    progress(f"{len(rows)} rows in {source}; job {job_id}")
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        if line.strip():
            progress(f"  {line.rstrip()}")

    try:
        code = jobs.follow(job_id, on_line, timeout_s)
    except TimeoutError:
        jobs.stop(job_id)
        raise LocalClusterError(
            f"the offline job {job_id} took longer than {timeout_s:.0f} s and was stopped"
        ) from None
    except KeyboardInterrupt:
        jobs.stop(job_id)
        raise
    if code:
        tail = "\n".join(lines[-LAST_LINES:])
        raise LocalClusterError(f"the offline job {job_id} ended with exit code {code}; its log ends with:\n{tail}")
    return OfflineResult(job_id, json.loads((output / "report.json").read_text()), _sample(output))


def _sample(output: Path) -> dict[str, str]:
    """The first answered row of the first part, by name."""
    for part in sorted(output.glob("part-*.jsonl")):
        for line in part.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row.get("output"):
                return {"prompt": row["messages"][-1]["content"], "answer": row["output"]}
    return {}

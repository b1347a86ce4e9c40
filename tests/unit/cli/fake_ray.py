"""What the tests of `tribes batch` share: Ray's job client, imitated, and submissions on record."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cluster.cli.batch_registry import Registry, Submission

T0 = 1_700_000_000.0


class FakeRay:
    """Ray's job client over a list of jobs; a stopped job ends at once and runs `on_stop` first."""

    def __init__(self) -> None:
        self.up = True
        self.jobs: dict[str, SimpleNamespace] = {}
        self.log = "starting\nfailed: no GPU\n"
        self.on_stop: Any = lambda: None

    def add(self, job_id: str, status: str, entrypoint: str = "x", metadata: dict[str, str] | None = None) -> None:
        self.jobs[job_id] = SimpleNamespace(
            submission_id=job_id, status=SimpleNamespace(value=status), entrypoint=entrypoint, metadata=metadata,
            message="a message", start_time=int(T0 * 1000) + len(self.jobs), end_time=None, driver_exit_code=None,
        )  # fmt: skip

    def list_jobs(self) -> list[SimpleNamespace]:
        return list(self.jobs.values())

    def submit_job(self, *, entrypoint: str, metadata: dict[str, str]) -> str:
        job_id = f"raysubmit_new{len(self.jobs)}"
        self.add(job_id, "RUNNING", entrypoint, metadata)
        return job_id

    def stop_job(self, job_id: str) -> None:
        self.on_stop()
        self.jobs[job_id].status.value = "STOPPED"

    def get_job_status(self, job_id: str) -> SimpleNamespace:
        status = self.jobs[job_id].status.value
        return SimpleNamespace(is_terminal=lambda: status not in ("PENDING", "RUNNING"))

    def get_job_logs(self, job_id: str) -> str:
        return self.log


def recorded(tmp_path: Path, job_id: str, output: Path | str, at_s: float = T0) -> Submission:
    command = f"python -m batch_jobs.generate --input /in.jsonl --output {output} --max-tokens 7"
    item = Submission(job_id, command, str(output), "m", "/c.yaml", at_s)
    Registry(tmp_path / "data").record(item)
    return item

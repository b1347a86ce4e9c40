"""Offline jobs: the entry point's command line, following a log that breaks off, exit codes."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import jobs
from cluster.cli.app import app
from cluster.cli.jobs import JobsClient, Lines, entrypoint


class FakeRay:
    """Ray's job client for one job whose log stream breaks once, half way through a line."""

    log = "one\ntwo\nthree\nlast without newline"

    def __init__(self, exit_code: int | None = 0, status: str = "SUCCEEDED") -> None:
        self.exit_code, self.status = exit_code, status
        self.tails = 0
        self.commands: list[str] = []
        self.stopped: list[str] = []

    def submit_job(self, *, entrypoint: str, metadata: dict[str, str] | None) -> str:
        self.commands.append(entrypoint)
        return "job-1"

    def get_job_status(self, job_id: str) -> Any:
        over = self.tails >= 2 or bool(self.stopped)
        return SimpleNamespace(is_terminal=lambda: over)

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        self.tails += 1
        if self.tails == 1:
            yield "one\nt"
            raise RuntimeError("connection closed")
        yield "one\ntwo\n"

    def get_job_logs(self, job_id: str) -> str:
        return self.log

    def get_job_info(self, job_id: str) -> Any:
        return SimpleNamespace(driver_exit_code=self.exit_code, status=self.status)

    def stop_job(self, job_id: str) -> None:
        self.stopped.append(job_id)


@pytest.fixture
def ray_jobs(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(jobs, "POLL_S", 0.001)
    monkeypatch.setattr(jobs, "REJOIN_S", 0.001)

    def connect(self: JobsClient, config: object) -> None:
        self._client = fake

    monkeypatch.setattr(JobsClient, "__init__", connect)
    return fake


def submit(config_path: Path, *arguments: str) -> tuple[int, str]:
    options = ["batch", "submit", "-c", str(config_path), "--input", "in.jsonl", "--output", "s3://bucket/out"]
    result = CliRunner().invoke(app, [*options, *arguments])
    return result.exit_code, result.output


def test_paths_become_absolute_and_urls_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = shlex.split(entrypoint(Path("/c.yaml"), "a b.jsonl", "s3://bucket/out", extra=["--seed", "1"]))
    assert command[0].startswith("python") and command[1:3] == ["-m", "batch_jobs.generate"]
    options = dict(zip(command[3::2], command[4::2], strict=True))
    assert options == {
        "--config": "/c.yaml",
        "--input": str(tmp_path / "a b.jsonl"),
        "--output": "s3://bucket/out",
        "--seed": "1",
    }


def test_every_line_is_shown_once_though_the_stream_broke(config_path: Path, ray_jobs: FakeRay) -> None:
    code, output = submit(config_path, "--model", "m", "--max-tokens", "7", "--", "--temperature", "0")
    assert code == 0 and ray_jobs.tails == 2
    assert output.splitlines()[1:] == ["one", "two", "three", "last without newline"]
    (command,) = ray_jobs.commands
    assert f"--config {config_path}" in command and command.endswith("--model m --max-tokens 7 --temperature 0")


@pytest.mark.parametrize(("exit_code", "status", "expected"), [(2, "FAILED", 2), (None, "STOPPED", 1)])
def test_the_jobs_exit_code_is_ours(
    config_path: Path, ray_jobs: FakeRay, exit_code: int | None, status: str, expected: int
) -> None:
    ray_jobs.exit_code, ray_jobs.status = exit_code, status
    assert submit(config_path)[0] == expected


def test_no_wait_returns_at_once(config_path: Path, ray_jobs: FakeRay) -> None:
    code, output = submit(config_path, "--no-wait")
    assert code == 0 and "job-1" in output and ray_jobs.tails == 0


def test_following_is_bounded(config_path: Path, ray_jobs: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_S", 5.0)
    monkeypatch.setattr(jobs, "REJOIN_S", 5.0)
    with pytest.raises(TimeoutError):
        JobsClient(SimpleNamespace()).follow("job-1", lambda _: None, timeout_s=0.05)  # type: ignore[arg-type]


def test_no_dashboard_names_the_cure(config_path: Path) -> None:
    code, output = submit(config_path)
    assert code == 1 and "tribes up" in output


def test_lines_survive_any_cut() -> None:
    log = "alpha\nbeta\n\ngamma"
    for cut in range(len(log) + 1):
        seen: list[str] = []
        lines = Lines(seen.append)
        lines.feed(log[:cut])
        lines.restart()
        lines.feed(log)
        lines.end()
        assert seen == ["alpha", "beta", "", "gamma"]

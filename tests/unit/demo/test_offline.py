"""The demo's offline step around a fake Jobs API."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.config import load_config
from cluster.demo import offline
from cluster.local import LocalClusterError
from tests.unit.cli.conftest import write_config


class FakeJobs:
    """Runs the job at once: writes what `outcome` says."""

    outcome: int | BaseException = 0
    stopped: list[str] = []  # noqa: RUF012

    def __init__(self, config: object) -> None:
        self.command = ""

    def submit(self, command: str, metadata: dict[str, str] | None = None) -> str:
        self.command = command
        return "job-1"

    def stop(self, job_id: str) -> None:
        self.stopped.append(job_id)

    def follow(self, job_id: str, on_line: Callable[[str], None], timeout_s: float | None = None) -> int:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        argv = shlex.split(self.command)
        rows = Path(argv[argv.index("--input") + 1]).read_text().splitlines()
        folder = Path(argv[argv.index("--output") + 1])
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps({"rows": len(rows)}))
        answered = [{**json.loads(rows[0]), "output": None}, {**json.loads(rows[1]), "output": "An answer."}]
        (folder / "part-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answered))
        on_line(f"rows {len(rows)}")
        return self.outcome


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[Any, list[str]]]:
    monkeypatch.setattr(offline, "JobsClient", FakeJobs)
    monkeypatch.setattr(FakeJobs, "stopped", [])
    config = load_config(write_config(tmp_path))
    lines: list[str] = []
    return lambda: (offline.run_offline(config, "m", tmp_path / "run", lines.append, 1.0), lines)


def test_rows_are_written_answered_and_sampled(run: Callable[[], Any]) -> None:
    result, lines = run()
    assert result.job_id == "job-1" and result.report["rows"] >= 48
    assert result.sample["answer"] == "An answer." and "Summarise" in result.sample["prompt"]
    assert "job-1" in lines[0] and lines[-1].strip().startswith("rows")


def test_a_failed_job_shows_the_end_of_its_log(run: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeJobs, "outcome", 2)
    with pytest.raises(LocalClusterError, match=r"exit code 2(.|\n)*rows"):
        run()


@pytest.mark.parametrize(
    ("raised", "seen"), [(TimeoutError(), LocalClusterError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_a_job_nobody_waits_for_any_more_is_stopped(
    run: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, raised: BaseException, seen: type[BaseException]
) -> None:
    monkeypatch.setattr(FakeJobs, "outcome", raised)
    with pytest.raises(seen):
        run()
    assert FakeJobs.stopped == ["job-1"]

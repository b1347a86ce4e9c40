"""`tribes batch submit|cancel|resume`: stopping and continuing; what is recorded and what is refused."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from batch_jobs.output.lock import process_start
from cluster.cli import jobs
from cluster.cli.batch_registry import Registry
from cluster.cli.jobs import JobsClient
from tests.unit.cli.fake_ray import FakeRay, recorded
from tests.unit.cli.test_batch_reader import PROGRESS, write


def test_cancel_keeps_what_is_finished_and_says_how_to_resume(tmp_path: Path, ray: FakeRay, batch: Any) -> None:
    output = write(tmp_path / "out", _progress=PROGRESS)
    recorded(tmp_path, "raysubmit_abc", output)
    ray.add("raysubmit_abc", "RUNNING")
    ray.on_stop = lambda: write(output, _progress=PROGRESS | {"rows_done": 55, "state": "stopped"})
    code, said = batch("cancel", "abc")
    assert code == 0 and ray.jobs["raysubmit_abc"].status.value == "STOPPED"
    assert f"55 of 100 rows are kept in {output}" in said and "tribes batch resume raysubmit_abc" in said
    assert "killed" not in said
    code, said = batch("cancel", "abc")
    assert code == 0 and "nothing to stop" in said and "stopped" in said


def test_cancel_says_when_the_job_was_killed_and_when_it_does_not_end(
    tmp_path: Path, ray: FakeRay, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(tmp_path, "raysubmit_abc", write(tmp_path / "out", _progress=PROGRESS | {"updated_unix_s": time.time()}))
    ray.add("raysubmit_abc", "RUNNING")
    assert "killed before it could say so" in batch("cancel", "abc")[1]
    ray.add("raysubmit_abc", "RUNNING")
    monkeypatch.setattr(ray, "stop_job", lambda job_id: None)
    monkeypatch.setattr(JobsClient.stop, "__defaults__", (0.01,))
    code, said = batch("cancel", "abc")
    assert code == 1 and "has not ended" in said


def driver(output: Path, code: str) -> subprocess.Popen[str]:
    """A process with the output's lock, ready for signals."""
    process = subprocess.Popen([sys.executable, "-c", code, str(output)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    held = {"run_id": "r2", "pid": process.pid, "host": socket.gethostname(), "taken_unix_s": time.time()}
    write(output, _lock=held | {"process_start": process_start(process.pid)})
    return process


GENTLE = """
import json, pathlib, signal, sys, time
def stop(number, frame):
    said = {"rows_done": 9, "rows_total": 10, "state": "stopped"}
    pathlib.Path(sys.argv[1], "_progress.json").write_text(json.dumps(said))
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""


def test_cancel_stops_a_driver_of_this_host_by_its_lock(tmp_path: Path, ray: FakeRay, batch: Any) -> None:
    ray.up = False
    output = write(tmp_path / "out", _job={"rows": 10})
    process = driver(output, GENTLE)
    try:
        code, said = batch("cancel", str(output))
        assert code == 0 and "9 of 10 rows are kept" in said and process.wait(10) == 130
    finally:
        process.kill()
        process.wait()


def test_a_process_that_only_has_the_drivers_pid_is_left_alone(
    tmp_path: Path, ray: FakeRay, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: kills.append(pid))
    held = {"run_id": "r", "pid": os.getpid(), "host": socket.gethostname(), "process_start": "older"}
    output = write(tmp_path / "out", _job={"rows": 10}, _lock=held | {"taken_unix_s": time.time()})
    code, said = batch("cancel", str(output))
    assert code == 0 and "nothing to stop" in said and kills == []


def test_a_driver_elsewhere_is_named(tmp_path: Path, ray: FakeRay, batch: Any) -> None:
    held = {"run_id": "r", "pid": 77, "host": "far-away", "process_start": "1", "taken_unix_s": time.time()}
    output = write(tmp_path / "out", _job={"rows": 10}, _lock=held)
    code, said = batch("cancel", str(output))
    assert code == 1 and "far-away" in said and "kill 77" in said


def test_resume_submits_the_recorded_command(tmp_path: Path, ray: FakeRay, batch: Any) -> None:
    output = write(tmp_path / "out", _progress=PROGRESS | {"state": "stopped"})
    first = recorded(tmp_path, "raysubmit_abc", output)
    code, said = batch("resume", "abc", "--no-wait")
    assert code == 0 and "40 of 100 rows are committed already" in said and "raysubmit_new0" in said
    job = ray.jobs["raysubmit_new0"]
    assert job.entrypoint == first.command
    assert job.metadata == {"tribes.kind": "batch", "tribes.output": str(output), "tribes.model": "m"}
    newest = Registry(tmp_path / "data").submissions()[0]
    assert (newest.id, newest.command, newest.config) == ("raysubmit_new0", first.command, "/c.yaml")
    code, said = batch("resume", str(output), "--no-wait")  # the new one runs now
    assert code == 1 and "raysubmit_new0 is at work" in said
    code, said = batch("resume", "abc", "--no-wait")  # also under the old one's name
    assert code == 1 and len(ray.jobs) == 1


def test_resume_of_a_driver_started_by_hand(
    tmp_path: Path, ray: FakeRay, batch: Any, monkeypatch: pytest.MonkeyPatch, config_path: Path
) -> None:
    words = ["--input", "in.jsonl", "--output", "out", "--seed", "1"]
    spec = {"model": "of-spec", "task": "generate"}
    output = write(tmp_path / "out", _job={"rows": 10, "spec": spec, "command": words, "source": str(tmp_path)})
    code, said = batch("resume", str(output), "--no-wait")
    assert code == 1 and "in.jsonl, which" in said and "is not here" in said and not ray.jobs
    (tmp_path / "in.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    assert batch("resume", "./out", "--no-wait")[0] == 0
    assert ray.jobs["raysubmit_new0"].metadata["tribes.model"] == "of-spec"
    assert shlex.split(ray.jobs["raysubmit_new0"].entrypoint)[1:] == [
        "-m", "batch_jobs.generate", "--input", f"{tmp_path}/in.jsonl", "--output", str(output), "--seed", "1",
        "--config", str(config_path),
    ]  # fmt: skip


def test_resume_refuses_what_is_complete_unknown_or_at_work(tmp_path: Path, ray: FakeRay, batch: Any) -> None:
    recorded(tmp_path, "raysubmit_done", write(tmp_path / "done", done={"rows": 3}, _job={"rows": 3}))
    code, said = batch("resume", "done", "--no-wait")
    assert code == 1 and "is complete: all 3 rows" in said
    output = write(tmp_path / "bare", _job={"rows": 3})
    code, said = batch("resume", str(output), "--no-wait")
    assert code == 1 and "how" in said and "not recorded" in said
    held = {"run_id": "r", "pid": os.getpid(), "host": socket.gethostname(), "taken_unix_s": time.time()}
    write(output, _lock=held | {"process_start": process_start(os.getpid())})
    code, said = batch("resume", str(output), "--no-wait")
    assert code == 1 and "is at work" in said
    recorded(tmp_path, "raysubmit_url", "nonsense://bucket/out")
    code, said = batch("resume", "url", "--no-wait")
    assert code == 1 and "cannot be read" in said and not ray.jobs


def test_resume_without_a_cluster_names_the_cure(tmp_path: Path, ray: FakeRay, batch: Any) -> None:
    ray.up = False
    recorded(tmp_path, "raysubmit_abc", write(tmp_path / "out", _progress=PROGRESS))
    code, said = batch("resume", "abc")
    assert code == 1 and "run `tribes up` first" in said


def test_a_submission_is_recorded_whole_and_a_dry_run_is_not(tmp_path: Path, ray: FakeRay, batch: Any) -> None:
    assert batch("submit", "--no-wait", "--input", "/in", "--output", "s3://b/o")[0] == 0
    assert batch("submit", "--no-wait", "--input", "/in", "--output", "s3://b/o", "--dry-run")[0] == 0
    (path,) = (tmp_path / "data" / "batch").iterdir()
    kept = json.loads(path.read_text())
    assert path.name == "raysubmit_new0.json" and path.stat().st_mode & 0o777 == 0o600
    assert kept["id"] == "raysubmit_new0"
    assert kept["output"] == "s3://b/o" and kept["model"] == "m" and kept["command"] == ray.jobs[kept["id"]].entrypoint
    assert kept["config"] == str(tmp_path / "config.yaml") and abs(kept["submitted_at_s"] - time.time()) < 60


def test_a_record_that_cannot_be_finished_leaves_no_file_behind_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        recorded(tmp_path, "raysubmit_abc", "/out")
    assert Registry(tmp_path / "data").submissions() == []


def test_the_head_gives_a_stopped_job_time_to_commit(config_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.config import load_config
    from cluster.local import head

    monkeypatch.delenv("RAY_JOB_STOP_WAIT_TIME_S", raising=False)
    made = head._environment(load_config(config_path), "marker")
    assert int(made["RAY_JOB_STOP_WAIT_TIME_S"]) < jobs.STOP_S
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "90")
    assert head._environment(load_config(config_path), "marker")["RAY_JOB_STOP_WAIT_TIME_S"] == "90"

"""`tribes batch ls|show|cancel|resume`: joining Ray, registry and outputs; stopping and continuing; what is refused."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from batch_jobs.output.lock import process_start
from cluster.cli import batch_commands, batch_control, batch_data, jobs
from cluster.cli.app import app
from cluster.cli.batch_registry import Registry, Submission
from cluster.cli.jobs import JobsClient
from cluster.local import LocalClusterError
from tests.unit.cli.test_batch_reader import PROGRESS, REPORT, write

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


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()

    def connect(self: JobsClient, config: object) -> None:
        if not fake.up:
            raise LocalClusterError("no Ray dashboard at http://127.0.0.1:1: run `tribes up` first")
        self._client = fake  # type: ignore[assignment]

    monkeypatch.setattr(JobsClient, "__init__", connect)
    monkeypatch.setattr(jobs, "POLL_S", 0.001)
    monkeypatch.setattr(batch_control, "POLL_S", 0.01)
    return fake


@pytest.fixture
def batch(config_path: Path) -> Any:
    def run(*words: str) -> tuple[int, str]:
        command, *rest = words
        result = CliRunner().invoke(app, ["batch", command, "-c", str(config_path), *rest])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


def recorded(tmp_path: Path, job_id: str, output: Path | str, at_s: float = T0) -> Submission:
    command = f"python -m batch_jobs.generate --input /in.jsonl --output {output} --max-tokens 7"
    item = Submission(job_id, command, str(output), "m", "/c.yaml", at_s)
    Registry(tmp_path / "data").record(item)
    return item


def listed(batch: Any, *words: str) -> dict[str, Any]:
    code, output = batch("ls", "--json", *words)
    assert code == 0, output
    found: dict[str, Any] = json.loads(output)
    return found


def test_jobs_are_listed_newest_first_with_rays_word_where_it_has_one(tmp_path: Path, ray: FakeRay, batch: Any) -> None:
    live = write(tmp_path / "live", _progress=PROGRESS | {"updated_unix_s": time.time()})
    done = write(tmp_path / "done", _progress=PROGRESS, report=REPORT, done={"rows": 100})
    recorded(tmp_path, "raysubmit_done", done, T0 - 20)
    recorded(tmp_path, "raysubmit_lost", tmp_path / "lost", T0 - 10)
    recorded(tmp_path, "raysubmit_live", live, T0 - 5)
    ray.add("raysubmit_live", "RUNNING")
    ray.add("raysubmit_hand", "FAILED", f"python -m batch_jobs.generate --output {done}")
    ray.add("raysubmit_other", "RUNNING", "python train.py", {"tribes": "demo"})
    found = listed(batch)
    assert [(job["id"], job["status"]) for job in found["jobs"]] == [
        ("raysubmit_hand", "failed"),
        ("raysubmit_live", "running"),
        ("raysubmit_lost", "interrupted"),
        ("raysubmit_done", "complete"),
    ]
    shown = found["jobs"][1]
    assert (shown["rows_done"], shown["percent"], shown["tokens_per_s"], shown["eta_s"]) == (40, 40.0, 500.0, 12.0)
    assert shown["usd"] == 0.5 and shown["output"] == str(live) and found["no_ray"] is None
    assert found["jobs"][0]["eta_s"] is None and found["jobs"][2]["rows_done"] is None
    assert [job["id"] for job in listed(batch, "--limit", "2")["jobs"]] == ["raysubmit_hand", "raysubmit_live"]


def test_without_a_cluster_the_list_is_the_registrys(tmp_path: Path, ray: FakeRay, batch: Any) -> None:
    ray.up = False
    recorded(tmp_path, "raysubmit_done", write(tmp_path / "done", report=REPORT, done={"rows": 100}))
    (tmp_path / "data" / "batch" / "raysubmit_bad.json").write_text("{")
    code, output = batch("ls")
    assert code == 0
    for part in ("raysubmit_done", "complete", "100/100", "$0.7500", "450", "tribes up"):
        assert part in output, part


def test_without_any_ray_at_all_nothing_is_waited_for(tmp_path: Path, batch: Any) -> None:
    recorded(tmp_path, "raysubmit_x", tmp_path / "out")
    began_s = time.monotonic()
    assert listed(batch)["jobs"][0]["status"] == "interrupted"
    assert time.monotonic() - began_s < 10


def test_a_hung_dashboard_does_not_hang_the_list(
    tmp_path: Path, ray: FakeRay, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_data, "RAY_S", 0.1)
    monkeypatch.setattr(ray, "list_jobs", lambda: time.sleep(3))
    recorded(tmp_path, "raysubmit_x", tmp_path / "out")
    found = listed(batch)
    assert found["jobs"][0]["id"] == "raysubmit_x" and "did not answer" in found["no_ray"]


def test_an_unreachable_store_is_a_question_mark(tmp_path: Path, ray: FakeRay, batch: Any) -> None:
    recorded(tmp_path, "raysubmit_x", "nonsense://key:secret@bucket/out")
    recorded(tmp_path, "raysubmit_y", write(tmp_path / "y", done={"rows": 3}, _job={"rows": 3}))
    code, output = batch("ls")
    assert code == 0 and "? nonsense://bucket/out: " in output and "secret" not in output and "3/3" in output
    assert sorted(job["status"] for job in listed(batch)["jobs"]) == ["?", "complete"]


def test_show_tells_everything(tmp_path: Path, ray: FakeRay, batch: Any) -> None:
    pools = {"l4": {"name": "l4", "rows": 30, "tokens_per_s": 12.5}, "h100": {"name": "h100", "rows": 70, "usd": 0.25}}
    output = write(
        tmp_path / "out", report=REPORT | {"pools": list(pools.values())},
        _progress=PROGRESS | {"state": "failed", "failure": "all engines died"},
        _job={"spec": {"model": "m", "params": {"max_tokens": 7}}, "rows": 100, "command": ["--input", "x"]},
    )  # fmt: skip
    for name in ("part-a-00000.jsonl", "part-a-00001.jsonl", "report.html"):
        (output / name).touch()
    recorded(tmp_path, "raysubmit_abc", output)
    ray.add("raysubmit_abc", "FAILED")
    for target in ("raysubmit_abc", "raysubmit_a", "ab", str(output), f"{output}/"):
        code, shown = batch("show", target)
        assert code == 0, shown
        for part in ("raysubmit_abc", "failed", "max_tokens", "l4", "12.5", "0.25", "prompt_too_long", "report.html"):
            assert part in shown, (target, part)
        assert "failed: no GPU" in shown and "part-a-00000.jsonl" in shown
    found = json.loads(batch("show", "abc", "--json")[1])
    assert found["settings"] == {"model": "m", "params": {"max_tokens": 7}, "rows": 100}
    assert found["failure"] == "all engines died"
    assert found["pools"] == pools and found["log_tail"] == ["starting", "failed: no GPU"]
    assert f"{output}/report.html" in found["files"]


def test_show_of_an_output_that_ray_jobs_did_not_start(tmp_path: Path, ray: FakeRay, batch: Any) -> None:
    output = write(tmp_path / "out", _job={"rows": 5, "model": "m"}, done={"rows": 5})
    code, shown = batch("show", str(output))
    assert code == 0 and "complete" in shown and "5/5" in shown
    code, shown = batch("show", str(tmp_path))
    assert code == 1 and "no output of an offline job" in shown


def test_follow_ends_with_the_job(tmp_path: Path, ray: FakeRay, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    output = write(tmp_path / "out", _progress=PROGRESS | {"updated_unix_s": time.time()})
    recorded(tmp_path, "raysubmit_abc", output)
    ray.add("raysubmit_abc", "RUNNING")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            write(output, done={"rows": 100})
            ray.jobs["raysubmit_abc"].status.value = "SUCCEEDED"

    monkeypatch.setattr(batch_commands, "time", SimpleNamespace(sleep=wait))
    code, shown = batch("show", "abc", "--follow", "--json")
    states = [json.loads(line) for line in shown.splitlines()]
    assert code == 0 and [item["status"] for item in states] == ["running", "running", "succeeded"]
    assert states[0]["rows_done"] == 40 and states[-1]["rows_done"] == 100


@pytest.mark.parametrize("command", ["show", "cancel", "resume"])
def test_an_unknown_job_names_the_nearest_or_the_newest(tmp_path: Path, ray: FakeRay, batch: Any, command: str) -> None:
    code, output = batch(command, "abc")
    assert code == 1 and "none was submitted" in output
    recorded(tmp_path, "raysubmit_abcdef", tmp_path / "a")
    recorded(tmp_path, "raysubmit_abcxyz", tmp_path / "b")
    code, output = batch(command, "raysubmit_abcdeg")
    assert code == 1 and "Did you mean raysubmit_abcdef" in output
    code, output = batch(command, "0000")
    assert code == 1 and "The newest are: " in output and "raysubmit_abcxyz" in output
    code, output = batch(command, "abc")
    assert code == 1 and "begins the ids of 2 jobs" in output and "raysubmit_abcdef" in output


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

"""What output folders say, and that a store that does not answer costs bounded time."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batch_jobs.output.lock import process_start
from cluster.cli.batch_output import OutputState
from cluster.cli.batch_reader import read_output, read_outputs

PROGRESS = {
    "rows_done": 40, "rows_total": 100, "errors": 3, "input_tokens_per_s": 400.0, "output_tokens_per_s": 100.0,
    "eta_s": 12.0, "usd": 0.5, "pools": {"l4": {"rows": 40}}, "state": "running", "run_id": "r2",
}  # fmt: skip
REPORT = {
    "rows_total": 100, "rows": 90, "errors": {"prompt_too_long": 2}, "run_id": "r2",
    "run": {"tokens_per_s": 450.0, "usd": 0.75}, "pools": [{"name": "l4", "rows": 90}],
}  # fmt: skip


def write(folder: Path, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def lock(pid: int, start: str | None, host: str | None = None) -> dict[str, Any]:
    return {
        "run_id": "r2", "pid": pid, "host": host or socket.gethostname(), "process_start": start or "",
        "taken_unix_s": time.time() - 1000,
    }  # fmt: skip


def test_a_running_job_has_rates_of_now(tmp_path: Path) -> None:
    write(tmp_path, _progress=PROGRESS | {"updated_unix_s": time.time()}, report=REPORT | {"run_id": "r1"})
    state = read_output(str(tmp_path))
    assert (state.rows_done, state.rows_total, state.percent) == (40, 100, 40.0)
    assert state.rates["tokens_per_s"] == 500.0 and state.eta_s == 12.0 and state.usd == 0.5
    assert state.pools == {"l4": {"rows": 40}}
    assert state.errors == {"all kinds": 3}  # not those of the earlier run's report


def test_rates_of_a_killed_driver_are_not_those_of_now(tmp_path: Path) -> None:
    write(tmp_path, _progress=PROGRESS | {"updated_unix_s": time.time() - 3600})
    state = read_output(str(tmp_path))
    assert state.rates["tokens_per_s"] is None and state.eta_s is None and state.rows_done == 40


def test_an_ended_job_has_the_figures_of_its_report(tmp_path: Path) -> None:
    write(tmp_path, _progress=PROGRESS | {"state": "finished"}, report=REPORT, done={"rows": 100})
    state = read_output(str(tmp_path))
    assert state.status == "complete" and state.rows_done == 100 and state.percent == 100.0
    assert state.rates["tokens_per_s"] == 450.0 and state.usd == 0.75 and state.errors == {"prompt_too_long": 2}
    assert state.pools == {"l4": {"name": "l4", "rows": 90}}


@pytest.mark.parametrize(("said", "status"), [("failed", "failed"), ("stopped", "stopped"), ("running", "interrupted")])
def test_without_a_driver_the_last_words_count(tmp_path: Path, said: str, status: str) -> None:
    write(tmp_path, _progress=PROGRESS | {"state": said}, _lock=lock(os.getpid(), "another start"))
    assert read_output(str(tmp_path)).status == status


def test_a_live_driver_is_one_with_the_same_start(tmp_path: Path) -> None:
    write(tmp_path, _progress=PROGRESS, _lock=lock(os.getpid(), process_start(os.getpid())))
    assert read_output(str(tmp_path)).status == "running"


def test_a_driver_on_another_host_lives_while_its_heart_beats(tmp_path: Path) -> None:
    write(tmp_path, _lock=lock(1, "1", "elsewhere"))
    beat = tmp_path / "_heartbeat-r2"
    beat.write_text(str(time.time() - 5))
    assert read_output(str(tmp_path)).driver_alive
    beat.write_text(str(time.time() - 500))
    assert not read_output(str(tmp_path)).driver_alive


def test_nothing_damaged_and_nothing_there(tmp_path: Path) -> None:
    nothing = read_output(str(tmp_path / "missing"))
    assert not nothing.is_job and nothing.problem is None and nothing.status == "interrupted"
    (tmp_path / "_progress.json").write_text('{"rows_')
    damaged = read_output(str(tmp_path))
    assert damaged.status == "?" and "_progress.json is damaged" in str(damaged.problem)
    assert OutputState("x", progress={"rows_done": "many", "usd": None}).rows_done is None


def test_urls_are_read_by_a_child(tmp_path: Path) -> None:
    write(tmp_path / "a", done={"rows": 7}, _job={"rows": 7, "model": "m"})
    url, plain = f"file://{tmp_path}/a", str(tmp_path / "b")
    found = read_outputs([url, plain, "nonsense://x/y", url], timeout_s=30)
    assert found[url].complete and found[url].rows_total == 7 and found[url].names == ["done.json"]
    assert found[plain].problem is None and found["nonsense://x/y"].problem


@pytest.fixture
def silent_store() -> Iterator[str]:
    """An S3 endpoint that takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        endpoint = f"127.0.0.1%3A{server.getsockname()[1]}"
        yield f"s3://k:s@bucket/out?endpoint_override={endpoint}&scheme=http&region=us-east-1"


def test_a_silent_store_costs_no_more_than_the_time_given(tmp_path: Path, silent_store: str) -> None:
    write(tmp_path, done={"rows": 7})
    others = [f"file://{tmp_path}", str(tmp_path)]
    began_s = time.monotonic()
    found = read_outputs([silent_store, *others], timeout_s=6)
    assert time.monotonic() - began_s < 8
    assert "within 6 s" in str(found[silent_store].problem) and found[silent_store].status == "?"
    assert all(found[other].complete for other in others)


def test_places_are_told_without_the_keys_of_a_url() -> None:
    assert OutputState("s3://key:secret@bucket/out?region=x").shown == "s3://bucket/out"

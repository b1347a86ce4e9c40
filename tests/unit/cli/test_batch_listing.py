"""`tribes batch ls|show`: joining Ray, registry and outputs; what is unknown or unreachable."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.cli import batch_commands, batch_data
from tests.unit.cli.fake_ray import T0, FakeRay, recorded
from tests.unit.cli.test_batch_reader import PROGRESS, REPORT, write


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

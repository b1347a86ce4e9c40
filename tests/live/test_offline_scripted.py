"""Offline jobs on a real local Ray with a scripted engine: the whole path, and death at every level.

Each job runs through the command line in its own process with its own local Ray, as a user's would, so that a driver
can be killed like a user's driver.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.offline_jobs import calls, engine_pids, output_rows, write_config, write_jsonl
from tests.support.offline_runs import ROOT, Driver, assert_every_row_once, command, gone, report, run

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]


def test_good_and_bad_rows_then_a_rerun_with_nothing_to_do(tmp_path: Path) -> None:
    write_config(tmp_path, engines=2)
    good: list[dict[str, Any]] = [{"id": f"r{i}", "prompt": f"row number {i}", "extra": {"n": i}} for i in range(60)]
    bad: list[Any] = [
        "{nonsense",
        {"id": "empty", "prompt": ""},
        {"id": "number", "prompt": 5},
        {"id": "none"},
        {"id": "long", "prompt": "too-long"},
        {"id": "chat", "messages": [{"role": "user", "content": "hello there"}]},
    ]
    source = write_jsonl(tmp_path / "in.jsonl", good[:30] + bad + good[30:])
    text = run(tmp_path, source)
    ids = [row["id"] for row in good] + ["in.jsonl:31", "empty", "number", "none", "long", "chat"]
    rows = {row["id"]: row for row in assert_every_row_once(tmp_path, ids)}
    assert rows["r7"]["output"] == "ROW NUMBER 7" and rows["r7"]["extra"] == {"n": 7} and rows["r7"]["error"] is None
    assert rows["chat"]["output"] == "HELLO THERE"
    kinds = {row_id: row["error"]["type"] for row_id, row in rows.items() if row["error"]}
    assert kinds == {
        "in.jsonl:31": "invalid_json", "empty": "missing_prompt", "number": "invalid_prompt",
        "none": "missing_prompt", "long": "prompt_too_long",
    }  # fmt: skip
    result = report(tmp_path)
    assert (result["rows"], result["ok"], sum(result["errors"].values()), result["complete"]) == (66, 61, 5, True)
    # The first engine may have done all before the second one is up.
    assert result["run"]["engines_started"] in (1, 2) and result["run"]["usd"] > 0
    assert "starting a local one" in text and "66 of 66 rows" in text
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "out" / "done.json").exists() and not (tmp_path / "out" / "_lock.json").exists()
    engines = engine_pids(tmp_path)
    assert gone(engines)

    assert "nothing to do, no engine started" in run(tmp_path, source)
    assert engine_pids(tmp_path) == engines


def test_parquet_to_parquet(tmp_path: Path) -> None:
    write_config(tmp_path)
    pq.write_table(pa.table({"prompt": [f"p {i}" for i in range(25)], "raw": [b"\xff"] * 25}), tmp_path / "in.parquet")
    run(tmp_path, tmp_path / "in.parquet", "--format", "parquet", "--limit", "20")
    table = pa.concat_tables([pq.read_table(part) for part in (tmp_path / "out").glob("part-*.parquet")])
    assert sorted(table.column("id").to_pylist()) == sorted(f"in.parquet:{i}" for i in range(1, 21))
    assert table.schema.field("raw").type == pa.binary()
    assert set(table.column("output").to_pylist()) == {f"P {i}" for i in range(20)}


def test_killed_engine_processes_cost_no_row_and_double_none(tmp_path: Path) -> None:
    """One engine is killed from outside, one ends itself in the middle of a row."""
    write_config(tmp_path, engines=2, part_rows=7, delay_s=0.1)
    rows = [{"id": f"r{i}", "prompt": f"row {i}" + (" die" if i == 150 else "")} for i in range(200)]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    driver = Driver(tmp_path, source)
    try:
        driver.until(lambda: driver.parts() >= 2, "two parts were committed")
        os.kill(engine_pids(tmp_path)[0], signal.SIGKILL)
        assert driver.wait() == 0, driver.text()
    finally:
        driver.end()
    assert_every_row_once(tmp_path, [row["id"] for row in rows])
    assert (tmp_path / "journal" / "died").exists()
    # Two died; how many of those that follow them are up before the other engine has done the rest is chance.
    assert report(tmp_path)["run"]["engines_started"] >= 3
    # Paid for twice at most: what was in the two engines or waited for its part when they died.
    assert len(calls(tmp_path)) - len(rows) <= 2 * (8 + 7)


def test_a_killed_driver_is_continued_at_once(tmp_path: Path) -> None:
    write_config(tmp_path, engines=2, part_rows=5, delay_s=0.15)
    ids = [f"r{i}" for i in range(120)]
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": row_id, "prompt": f"row {row_id}"} for row_id in ids])
    first = Driver(tmp_path, source)
    try:
        first.until(lambda: first.parts() >= 4, "four parts were committed")
        refused = subprocess.run(command(tmp_path, source), cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert refused.returncode == 2 and "another driver is at work here" in refused.stdout
    finally:
        first.process.kill()
        first.process.wait()
    orphans = engine_pids(tmp_path)
    # At once: the first job's engines may still be at work, and must not commit any more.
    text = run(tmp_path, source)
    assert "taking over the output" in text
    assert_every_row_once(tmp_path, ids)
    assert report(tmp_path)["run"]["rows"] < len(ids), "the second run must not redo what was committed"
    assert gone(orphans)


def test_sigterm_commits_what_is_finished_and_the_same_command_continues(tmp_path: Path) -> None:
    write_config(tmp_path, part_rows=1000, delay_s=0.1)
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("part_seconds: 1", "part_seconds: 600"))
    ids = [f"r{i}" for i in range(300)]
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": row_id, "prompt": "hi"} for row_id in ids])
    driver = Driver(tmp_path, source)
    driver.until(lambda: len(calls(tmp_path)) > 60, "sixty rows went through the engine")
    driver.process.terminate()
    assert driver.wait() == 130, driver.text()
    committed = output_rows(tmp_path / "out")
    assert 40 <= len(committed) < len(ids), "finished rows are committed although no part was full or old"
    assert "the same command continues" in driver.text() and not (tmp_path / "out" / "done.json").exists()
    assert report(tmp_path)["complete"] is False
    config.write_text(config.read_text().replace("delay_s: 0.1", "delay_s: 0.0"))
    run(tmp_path, source)
    assert_every_row_once(tmp_path, ids)
    assert len(calls(tmp_path)) - len(ids) <= 10


def test_a_row_that_always_kills_its_engine_becomes_an_error_row(tmp_path: Path) -> None:
    write_config(tmp_path)
    ids = [f"r{i}" for i in range(40)]
    rows = [{"id": row_id, "prompt": f"hi {row_id}"} for row_id in ids]
    rows.insert(3, {"id": "poison", "prompt": "always-die"})
    run(tmp_path, write_jsonl(tmp_path / "in.jsonl", rows))
    answers = {row["id"]: row for row in assert_every_row_once(tmp_path, [*ids, "poison"])}
    assert answers["poison"]["error"]["type"] == "engine_crashed"
    assert all(answers[row_id]["error"] is None for row_id in ids)


def test_an_engine_that_does_not_start_fails_the_job_with_its_reason(tmp_path: Path) -> None:
    write_config(tmp_path, fail_to_start=True)
    driver = Driver(tmp_path, write_jsonl(tmp_path / "in.jsonl", [{"prompt": "hi"}]))
    assert driver.wait() == 1, driver.text()
    assert "scripted: the engine does not start" in driver.text()

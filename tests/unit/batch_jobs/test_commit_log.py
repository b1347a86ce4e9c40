"""The exactly-once rule: who may commit which rows, and when a job gives up."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_jobs.output.lock import OutputLock
from batch_jobs.output.parts import LOCK_FILE, STAGING, part_name, staged_name
from batch_jobs.storage import Storage
from batch_jobs.work.commit_log import MAX_DEATHS_PER_ROW, CommitLog, FencedOff, RowStat


def stat(row_id: str, error: str | None = None) -> RowStat:
    return RowStat(row_id, 3, 1, 2, error)


class Folder:
    """An output folder with its lock and log."""

    def __init__(self, path: Path, run_id: str = "run-1") -> None:
        self.storage = Storage(str(path))
        self.storage.make_folder(f"{STAGING}/{run_id}")
        self.storage.write(LOCK_FILE, f'{{"run_id": "{run_id}"}}'.encode())
        self.run_id = run_id
        self.now_s = 0.0
        self.log = CommitLog(self.storage, run_id, max_engines=2, clock=lambda: self.now_s)
        self._number = 0

    def publish(self, engine: str, *ids: str) -> list[str]:
        part = part_name(engine, self._number, "jsonl")
        self._number += 1
        self.storage.write(staged_name(self.run_id, part), "\n".join(ids).encode())
        return self.log.publish(engine, part, [stat(row_id) for row_id in ids])

    def committed(self) -> list[str]:
        parts = [name for name in self.storage.names() if name.startswith("part-")]
        return [row_id for name in parts for row_id in self.storage.read(name).decode().split("\n")]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    for engine in ("a", "b"):
        folder.log.register(engine)
        folder.log.ready(engine, 1.0)
    return folder


def test_a_retried_batch_skips_what_the_dead_engine_committed(folder: Folder) -> None:
    assert folder.log.admit("a", ["1", "2", "3"]) == []
    assert folder.publish("a", "1", "2") == []
    assert folder.log.admit("b", ["1", "2", "3"]) == ["1", "2"]
    assert folder.publish("b", "3") == []
    assert sorted(folder.committed()) == ["1", "2", "3"]


def test_a_late_part_of_an_engine_thought_dead_is_refused_whole(folder: Folder) -> None:
    folder.log.admit("a", ["1", "2"])
    folder.log.admit("b", ["1"])
    assert folder.publish("a", "1", "2") == ["1"]
    assert folder.committed() == []
    assert folder.publish("a", "2") == [] and folder.publish("b", "1") == []
    assert folder.publish("a", "1") == ["1"], "committed by the other engine"
    assert sorted(folder.committed()) == ["1", "2"]


def test_a_run_that_lost_the_lock_commits_nothing(folder: Folder) -> None:
    folder.log.admit("a", ["1"])
    folder.storage.write(LOCK_FILE, b'{"run_id": "another"}')
    with pytest.raises(FencedOff):
        folder.publish("a", "1")
    assert folder.committed() == []
    assert folder.log.beat("a"), "the engines are told to stop"


def test_a_discarded_staging_folder_fences_even_a_log_past_its_lock_check(folder: Folder) -> None:
    folder.log.admit("a", ["1"])
    part = part_name("a", 0, "jsonl")
    folder.storage.write(staged_name("run-1", part), b"1")
    folder.storage.discard_folder(STAGING)
    with pytest.raises(FileNotFoundError):
        folder.log.publish("a", part, [stat("1")])
    assert folder.committed() == []


def test_a_row_that_is_in_every_death_stops_the_job(folder: Folder) -> None:
    folder.publish("a")
    for number in range(MAX_DEATHS_PER_ROW + 1):
        folder.log.admit(f"e{number}", ["poison", f"other{number}"])
    failure = folder.log.progress().failure
    assert failure is not None and "'poison'" in failure and "other" not in failure


def test_engines_that_never_finish_a_row_stop_the_job(folder: Folder) -> None:
    for number in range(3):
        folder.log.register(f"e{number}")
    assert folder.log.progress().failure is None
    folder.log.register("one too many")
    assert "none finished a row" in (folder.log.progress().failure or "")


def test_progress_sums(folder: Folder) -> None:
    folder.log.admit("a", ["1", "2"])
    part = part_name("a", 0, "jsonl")
    folder.storage.write(staged_name("run-1", part), b"1\n2")
    folder.log.publish("a", part, [stat("1"), stat("2", "missing_prompt")])
    folder.now_s = 7.0
    folder.log.beat("a")
    progress = folder.log.progress()
    assert (progress.totals.rows, progress.totals.ok, progress.totals.errors) == (2, 1, {"missing_prompt": 1})
    assert (progress.totals.prompt_tokens, progress.totals.cached_tokens, progress.totals.output_tokens) == (6, 2, 4)
    assert (progress.engines_started, progress.engine_seconds, progress.engine_start_s) == (2, 7.0, [1.0, 1.0])


def test_stopping(folder: Folder) -> None:
    assert not folder.log.beat("a")
    folder.log.stop()
    assert folder.log.beat("a", stopped=True) and not folder.log.progress().stopped
    folder.log.beat("b", stopped=True)
    assert folder.log.progress().stopped


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_every_row_once_under_random_deaths_and_late_parts(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Engines admit, finish, publish late or die at random, and batches are retried until all rows are in."""
    chance = random.Random(seed)
    folder = Folder(tmp_path_factory.mktemp("out"))
    folder.log._check_deaths = lambda ids: None  # type: ignore[method-assign]
    rows = [str(number) for number in range(12)]
    holding: dict[str, set[str]] = {}
    for step in range(120):
        engine = f"e{chance.randrange(6)}-{step // 30}"
        if chance.random() < 0.5 or engine not in holding:
            batch = chance.sample(rows, 4)
            holding[engine] = holding.get(engine, set()) | (set(batch) - set(folder.log.admit(engine, batch)))
        else:
            finished = {row for row in sorted(holding[engine]) if chance.random() < 0.5}
            refused = set(folder.publish(engine, *sorted(finished))) if finished else set()
            if refused and finished - refused:
                assert folder.publish(engine, *sorted(finished - refused)) == []
            holding[engine] -= finished
        if chance.random() < 0.1:
            holding.pop(engine, None)
    done = folder.log.admit("last", rows)
    left = [row for row in rows if row not in done]
    assert folder.publish("last", *left) == [] if left else True
    assert sorted(folder.committed()) == sorted(rows)


def test_the_real_lock_satisfies_the_log(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    lock = OutputLock(storage, "run-9")
    lock.take()
    try:
        storage.make_folder(f"{STAGING}/run-9")
        log = CommitLog(storage, "run-9", 1)
        log.register("a")
        log.admit("a", ["1"])
        storage.write(staged_name("run-9", "part-a-00000.jsonl"), b"1")
        assert log.publish("a", "part-a-00000.jsonl", [stat("1")]) == []
    finally:
        lock.release()

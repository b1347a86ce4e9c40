"""The ledger's actor without Ray: publishing, fencing, waiting and its figures."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from batch_jobs.engines.base import EngineLimits
from batch_jobs.input.prepared import Prepared
from batch_jobs.output.parts import LOCK_FILE, STAGING, staged_name
from batch_jobs.reporting.stats import RowStat
from batch_jobs.storage import Storage
from batch_jobs.work.engine_life import Patience
from batch_jobs.work.ledger_actor import POLL_S, LedgerActor, LedgerSettings
from batch_jobs.work.messages import EngineReport

PART = "part-e-00000.jsonl"


def actor_in(folder: Path, *, window_rows: int = 100) -> LedgerActor:
    """A ledger that owns `folder`, with engine `e` ready."""
    storage = Storage(str(folder))
    storage.make_folder(f"{STAGING}/run")
    storage.write(LOCK_FILE, json.dumps({"run_id": "run"}).encode())
    settings = LedgerSettings(
        str(folder), "run", "m", ("p",), 2, window_rows, 1 << 20, ordered=True, dedupe=True, patience=Patience()
    )
    return LedgerActor(settings)


async def started(actor: LedgerActor, engine: str = "e", seat: str = "p#0") -> None:
    await actor.register(engine, "p", seat)
    await actor.ready(engine, EngineLimits(4), 1.0)


def rows(count: int) -> list[Prepared]:
    return [Prepared(number, b"x", f"prompt {number}") for number in range(count)]


def stats(*numbers: int) -> list[RowStat]:
    return [RowStat(number, f"id{number}", 5, 2, 3, None, 0.5) for number in numbers]


def stage(folder: Path, name: str = PART) -> None:
    Storage(str(folder)).write(staged_name("run", name), b"{}\n")


async def one_row_staged(folder: Path) -> LedgerActor:
    """Engine `e` has row 0 and has written it into a part that nobody has published."""
    actor = actor_in(folder)
    await started(actor)
    await actor.offer(rows(1))
    await actor.exchange("e", EngineReport(4))
    stage(folder)
    return actor


async def test_a_part_gets_its_name_once_and_counts(tmp_path: Path) -> None:
    actor = actor_in(tmp_path)
    await started(actor)
    assert await actor.offer(rows(2))
    await actor.close()
    assert len((await actor.exchange("e", EngineReport(4))).work) == 2
    stage(tmp_path)
    assert await actor.publish("e", PART, stats(0, 1)) == []
    assert (tmp_path / PART).exists() and not (tmp_path / staged_name("run", PART)).exists()
    assert (await actor.exchange("e", EngineReport(4))).done
    progress = await actor.progress()
    assert progress.stopped and progress.failure is None
    totals = progress.stats.totals()
    assert (totals.rows, totals.prompt_tokens, totals.cached_tokens, totals.output_tokens) == (2, 10, 4, 6)
    assert progress.lives["p"].engines_started == 1 and progress.lives["p"].engine_seconds > 0


async def test_a_part_with_a_row_that_moved_on_is_refused_whole(tmp_path: Path) -> None:
    actor = actor_in(tmp_path)
    await started(actor)
    await actor.offer(rows(2))
    await actor.exchange("e", EngineReport(4))
    await actor.seat_lost("p#0")
    stage(tmp_path)
    assert await actor.publish("e", PART, stats(0, 1)) == [0, 1]
    assert not (tmp_path / PART).exists()
    assert (await actor.progress()).stats.totals().rows == 0


async def test_another_run_that_took_the_output_stops_this_one(tmp_path: Path) -> None:
    actor = await one_row_staged(tmp_path)
    Storage(str(tmp_path)).write(LOCK_FILE, json.dumps({"run_id": "other"}).encode())
    with pytest.raises(RuntimeError, match="another run has taken over"):
        await actor.publish("e", PART, stats(0))
    assert not (tmp_path / PART).exists()
    assert "another run" in str((await actor.progress()).failure)
    assert (await actor.exchange("e", EngineReport(4))).stop


async def test_nothing_is_published_out_of_a_discarded_staging_folder(tmp_path: Path) -> None:
    """What a new driver does first, so that an old ledger cannot add to what it has listed."""
    actor = await one_row_staged(tmp_path)
    Storage(str(tmp_path)).discard_folder(STAGING)
    with pytest.raises(FileNotFoundError):
        await actor.publish("e", PART, stats(0))
    assert not (tmp_path / PART).exists()


async def test_an_engine_cannot_be_lost_in_the_middle_of_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = await one_row_staged(tmp_path)
    move = Storage.move

    def slow_move(self: Storage, source: str, target: str) -> None:
        time.sleep(0.2)
        move(self, source, target)

    monkeypatch.setattr(Storage, "move", slow_move)
    publishing = asyncio.create_task(actor.publish("e", PART, stats(0)))
    await asyncio.sleep(0.05)
    await actor.seat_lost("p#0")  # waits, and then finds nothing to take away
    assert await publishing == []
    await actor.close()
    assert (await actor.progress()).stopped


async def test_offers_wait_for_room_and_questions_for_work(tmp_path: Path) -> None:
    actor = actor_in(tmp_path, window_rows=2)
    await started(actor)
    asked = asyncio.create_task(actor.exchange("e", EngineReport(2)))
    await asyncio.sleep(0.02)
    assert not asked.done()
    assert await actor.offer(rows(2))
    assert len((await asked).work) == 2
    assert await actor.offer([Prepared(2, b"x"), Prepared(3, b"x")])
    waiting = asyncio.create_task(actor.offer([Prepared(4, b"x")]))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    await actor.exchange("e", EngineReport(2))
    assert await waiting
    began_s = time.monotonic()
    await actor.exchange("e", EngineReport(1))
    assert (await actor.exchange("e", EngineReport(1))).work == []
    assert POLL_S <= time.monotonic() - began_s < POLL_S + 1


async def test_offers_end_when_the_job_stops(tmp_path: Path) -> None:
    actor = actor_in(tmp_path, window_rows=1)
    assert await actor.offer(rows(1))
    waiting = asyncio.create_task(actor.offer(rows(1)))
    await asyncio.sleep(0.02)
    await actor.stop()
    assert await waiting is False


async def test_engines_that_fail_to_start_leave_their_reason(tmp_path: Path) -> None:
    actor = actor_in(tmp_path)
    await actor.register("a", "p", "p#0")
    await actor.start_failed("a", "ValueError: no such model")
    await actor.seat_lost("p#0")
    await actor.register("b", "p", "p#0")
    await actor.seat_lost("p#0")  # killed before it could say anything
    first, second = (await actor.troubles()).start_failures["p#0"]
    assert first == "ValueError: no such model" and "killed while the engine started" in second
    await started(actor, "c")
    assert (await actor.troubles()).start_failures == {}


async def test_a_part_whose_move_half_succeeded_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store copies and then deletes; the delete may fail."""
    actor = await one_row_staged(tmp_path)

    def copy_alone(self: Storage, source: str, target: str) -> None:
        self.write(target, self.read(source))
        raise OSError("the delete failed")

    monkeypatch.setattr(Storage, "move", copy_alone)
    assert await actor.publish("e", PART, stats(0)) == []
    assert (await actor.progress()).stats.totals().rows == 1


async def test_a_move_whose_outcome_nobody_knows_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = actor_in(tmp_path)
    await started(actor)
    await actor.offer(rows(1))
    await actor.exchange("e", EngineReport(4))

    def unreachable(*_: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(Storage, "move", unreachable)
    monkeypatch.setattr(Storage, "exists", unreachable)
    with pytest.raises(OSError, match="no route"):
        await actor.publish("e", PART, stats(0))
    assert "nobody can tell" in str((await actor.progress()).failure)

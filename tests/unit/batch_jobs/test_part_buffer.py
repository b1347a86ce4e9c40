"""Finished rows on their way into parts: when they are committed, who waits, what a failure does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from batch_jobs.input.rows import Row
from batch_jobs.output.committed import read_committed
from batch_jobs.output.part_buffer import BACKLOG_PARTS, PartBuffer, PartSettings
from batch_jobs.output.parts import STAGING, Result
from batch_jobs.reporting.stats import RowStat
from batch_jobs.storage import Storage


class FakeLedger:
    """Publishes into the folder, refuses the rows it is told to, and can be held up."""

    def __init__(self, storage: Storage, refused: set[int]) -> None:
        self.storage, self.refused = storage, refused
        self.parts: list[list[RowStat]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def publish(self, part: str, stats: Sequence[RowStat]) -> list[int]:
        await self.open.wait()
        if bad := [stat.number for stat in stats if stat.number in self.refused]:
            return bad
        self.storage.move(f"{STAGING}/run/{part}", part)
        self.parts.append(list(stats))
        return []

    @property
    def numbers(self) -> list[list[int]]:
        return [[stat.number for stat in part] for part in self.parts]


class Bench:
    def __init__(self, path: Path, part_rows: int = 2, refused: set[int] | None = None, form: str = "jsonl") -> None:
        self.storage = Storage(str(path))
        self.storage.make_folder(f"{STAGING}/run")
        self.ledger = FakeLedger(self.storage, refused or set())
        self.now_s = 0.0
        settings = PartSettings(str(path), "run", form, pa.schema([]), part_rows, 10.0)
        self.buffer = PartBuffer(settings, "e", self.ledger, clock=lambda: self.now_s)

    async def add(self, *numbers: int) -> None:
        for number in numbers:
            result = Result("x", "stop", prompt_tokens=1, output_tokens=1)
            await self.buffer.add(number, Row(f"id-{number}", {}), result, 0.5)

    @property
    def committed(self) -> list[str]:
        return sorted(row.id for row in read_committed(self.storage))


async def test_a_full_part_is_committed_behind_the_engines_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.ledger.open.clear()
    await asyncio.wait_for(bench.add(1, 2, 3), 5)
    assert bench.buffer.unpublished == 3 and bench.committed == []
    bench.ledger.open.set()
    await bench.buffer.flush()
    assert bench.ledger.numbers == [[1, 2], [3]] and bench.buffer.unpublished == 0
    assert bench.committed == ["id-1", "id-2", "id-3"]


async def test_an_old_part_and_an_idle_engine_are_reasons_to_commit(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert not bench.buffer.due(idle=True)
    await bench.add(1)
    assert not bench.buffer.due(idle=False) and bench.buffer.due(idle=True)
    bench.now_s = 10.0
    assert bench.buffer.due(idle=False)
    bench.buffer.start_flush()
    assert not bench.buffer.due(idle=True), "rows on their way are not due again"
    await bench.buffer.flush()
    assert bench.committed == ["id-1"]
    await bench.add(2)
    assert not bench.buffer.due(idle=False), "the clock starts with the oldest row that waits"


async def test_the_ledger_is_told_what_the_rows_cost(tmp_path: Path) -> None:
    bench = Bench(tmp_path, part_rows=2)
    paid = Result("x", "stop", prompt_tokens=5, output_tokens=2, cached_tokens=1)
    await bench.buffer.add(7, Row("a", {}), paid, 1.5)
    error = {"type": "bad", "message": "m"}
    await bench.buffer.add(8, Row("b", {}), Result(error=error, duplicate_of="a"), 0.0)
    await bench.buffer.flush()
    assert bench.ledger.parts == [[RowStat(7, "a", 5, 1, 2, None, 1.5), RowStat(8, "b", 0, 0, 0, "bad", 0.0, True)]]


async def test_openai_errors_are_counted_by_the_name_that_a_rerun_reads(tmp_path: Path) -> None:
    bench = Bench(tmp_path, form="openai")
    body = {"error": {"message": "m", "type": "BadRequestError"}}
    error = {"type": "prompt_too_long", "message": "m", "status": 400, "body": body}
    await bench.buffer.add(1, Row("a", {}), Result(error=error), 0.0)
    await bench.buffer.add(2, Row("b", {}), Result(error={"type": "invalid_json", "message": "m"}), 0.0)
    await bench.buffer.flush()
    told = [stat.error for stat in bench.ledger.parts[0]]
    assert told == [row.error for row in read_committed(bench.storage)] == ["BadRequestError", "invalid_json"]


async def test_rows_that_another_engine_took_over_are_dropped_from_the_part(tmp_path: Path) -> None:
    bench = Bench(tmp_path, part_rows=3, refused={2})
    await bench.add(1, 2, 3)
    await bench.buffer.flush()
    assert bench.ledger.numbers == [[1, 3]] and bench.committed == ["id-1", "id-3"]
    assert list((tmp_path / STAGING / "run").iterdir()) == []
    assert bench.buffer.unpublished == 0


async def test_a_part_of_refused_rows_alone_is_no_part(tmp_path: Path) -> None:
    bench = Bench(tmp_path, refused={1, 2})
    await bench.add(1, 2)
    await bench.buffer.flush()
    assert bench.ledger.parts == [] and bench.committed == []


async def test_a_slow_output_holds_the_engine_only_when_memory_would_grow(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.ledger.open.clear()
    limit = BACKLOG_PARTS * 2
    await asyncio.wait_for(bench.add(*range(limit)), 5)
    late = asyncio.create_task(bench.add(limit))
    await asyncio.sleep(0.05)
    assert not late.done() and bench.buffer.unpublished == limit + 1
    bench.ledger.open.set()
    await asyncio.wait_for(late, 5)
    await bench.buffer.flush()
    assert len(bench.committed) == limit + 1
    assert bench.ledger.numbers == [[0, 1], [2, 3], [4, 5], [6, 7], [8]], "in the order in which they were cut"


async def test_a_part_that_cannot_be_written_is_everybodys_error_from_then_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.storage.discard_folder(STAGING)
    await bench.add(1, 2)
    with pytest.raises(FileNotFoundError):
        await bench.buffer.flush()
    with pytest.raises(FileNotFoundError):
        await bench.add(3)
    assert bench.committed == [] and bench.ledger.parts == []


async def test_an_error_frees_those_who_wait_for_room(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.ledger.open.clear()
    await bench.add(*range(BACKLOG_PARTS * 2))
    late = asyncio.create_task(bench.add(100))
    await asyncio.sleep(0.05)
    bench.storage.discard_folder(STAGING)
    bench.ledger.open.set()
    with pytest.raises(FileNotFoundError):
        await asyncio.wait_for(late, 5)


async def test_a_ledger_that_refuses_what_it_was_not_offered_is_no_endless_loop(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def nonsense(part: str, stats: Sequence[RowStat]) -> list[int]:
        return [99]

    bench.ledger.publish = nonsense  # type: ignore[method-assign]
    await bench.add(1, 2)
    with pytest.raises(RuntimeError, match="not in it"):
        await asyncio.wait_for(bench.buffer.flush(), 5)

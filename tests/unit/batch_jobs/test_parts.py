"""Parts: their form, that they are whole or absent, and when they are committed."""

from __future__ import annotations

import asyncio
import datetime
import io
from collections.abc import Sequence
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_jobs.errors import JobRefused
from batch_jobs.input.rows import Row
from batch_jobs.output.part_buffer import PartBuffer, PartSettings
from batch_jobs.output.parts import STAGING, Result, encode_part, is_part, part_name, read_committed
from batch_jobs.storage import Storage
from batch_jobs.work.commit_log import RowStat

DAY = datetime.date(2026, 11, 1)
BAD = {"type": "missing_prompt", "message": "prompt is empty"}
ROWS = [
    (Row("a", {"id": 1, "prompt": "x", "day": DAY, "tags": ["q"]}), Result("X", "stop", 5, 2, 1)),
    (Row("b", {"prompt": None, "day": None, "tags": "text"}), Result(error=BAD)),
]
SCHEMA = pa.schema([("prompt", pa.string()), ("day", pa.date32()), ("tags", pa.string())])


def test_jsonl_part() -> None:
    first, second = (orjson.loads(line) for line in encode_part(ROWS, "jsonl", SCHEMA).splitlines())
    assert first == {
        "id": "a", "prompt": "x", "day": "2026-11-01", "tags": ["q"], "output": "X", "finish_reason": "stop",
        "prompt_tokens": 5, "output_tokens": 2, "cached_tokens": 1, "error": None,
    }  # fmt: skip
    assert second["id"] == "b" and second["output"] is None and second["error"] == BAD


def test_parquet_part_keeps_types_and_one_schema() -> None:
    table = pq.read_table(io.BytesIO(encode_part(ROWS, "parquet", SCHEMA)))
    assert table.column_names[:2] == ["id", "prompt"] and table.schema.field("day").type == pa.date32()
    assert table.column("tags").to_pylist() == ['["q"]', "text"]
    assert table.column("error").to_pylist() == [None, BAD]
    lonely = pq.read_table(io.BytesIO(encode_part(ROWS[1:], "parquet", SCHEMA)))
    assert lonely.schema == table.schema, "a part of error rows alone must not change a column's type"


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_committed_rows_are_read_back_and_nothing_else(tmp_path: Path, form: str) -> None:
    storage = Storage(str(tmp_path))
    storage.write(part_name("e1", 0, form), encode_part(ROWS, form, SCHEMA))
    (tmp_path / "part-e1-00001.jsonl.abcd.tmp").write_text("torn")
    (tmp_path / STAGING / "run").mkdir(parents=True)
    (tmp_path / STAGING / "run" / "part-e1-00002.jsonl").write_text("staged")
    committed = read_committed(storage)
    assert committed.ids == {"a", "b"}
    assert (committed.totals.rows, committed.totals.ok, committed.totals.prompt_tokens) == (2, 1, 5)


def test_a_damaged_part_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "part-e1-00000.jsonl").write_text('{"id": "a", ')
    with pytest.raises(JobRefused, match=r"part-e1-00000\.jsonl cannot be read"):
        read_committed(Storage(str(tmp_path)))


def test_part_names() -> None:
    assert is_part("part-x-00000.jsonl") and is_part("part-x-00000.parquet")
    assert not is_part("report.json") and not is_part("part-x-00000.jsonl.1234.tmp")


class FakeLog:
    """Publishes into the folder and refuses the ids it is told to."""

    def __init__(self, storage: Storage, refused: set[str]) -> None:
        self.storage, self.refused = storage, refused
        self.parts: list[list[str]] = []

    async def publish(self, part: str, stats: Sequence[RowStat]) -> list[str]:
        ids = [stat.id for stat in stats]
        if bad := [row_id for row_id in ids if row_id in self.refused]:
            return bad
        self.storage.move(f"{STAGING}/run/{part}", part)
        self.parts.append(ids)
        return []


class Bench:
    def __init__(self, path: Path, part_rows: int = 2, refused: set[str] | None = None) -> None:
        self.storage = Storage(str(path))
        self.storage.make_folder(f"{STAGING}/run")
        self.log = FakeLog(self.storage, refused or set())
        self.now_s = 0.0
        settings = PartSettings(str(path), "run", "jsonl", pa.schema([]), part_rows, 10.0)
        self.buffer = PartBuffer(settings, "e", self.log, clock=lambda: self.now_s)

    def add(self, row_id: str) -> asyncio.Task[None]:
        return asyncio.create_task(self.buffer.add(Row(row_id, {}), Result("x", "stop", 1, 1)))


async def test_a_full_part_iscommittedand_only_then_are_its_rows_done(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first = bench.add("1")
    await asyncio.sleep(0)
    assert not first.done() and bench.log.parts == []
    await asyncio.gather(first, bench.add("2"))
    assert bench.log.parts == [["1", "2"]]
    assert read_committed(bench.storage).ids == {"1", "2"}


async def test_an_old_part_and_an_idle_engine_are_reasons_to_commit(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert not bench.buffer.due(idle=True)
    task = bench.add("1")
    await asyncio.sleep(0)
    assert not bench.buffer.due(idle=False) and bench.buffer.due(idle=True)
    bench.now_s = 10.0
    assert bench.buffer.due(idle=False)
    await bench.buffer.flush()
    await task


async def test_rows_that_another_engine_took_over_are_dropped_from_the_part(tmp_path: Path) -> None:
    bench = Bench(tmp_path, part_rows=3, refused={"2"})
    await asyncio.gather(bench.add("1"), bench.add("2"), bench.add("3"))
    assert bench.log.parts == [["1", "3"]]
    assert read_committed(bench.storage).ids == {"1", "3"}
    assert list((tmp_path / STAGING / "run").iterdir()) == []


async def test_a_part_that_cannot_be_written_fails_its_rows(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.storage.discard_folder(STAGING)
    results = await asyncio.gather(bench.add("1"), bench.add("2"), return_exceptions=True)
    assert all(isinstance(result, FileNotFoundError) for result in results)
    assert read_committed(bench.storage).ids == set()

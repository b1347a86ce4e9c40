"""Parts into files in input order: complete, ordered, bounded, and whole again after a crash at any step."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_jobs.errors import JobFailed, JobRefused
from batch_jobs.input.rows import Row
from batch_jobs.output import assemble as module
from batch_jobs.output.assemble import Limits, assemble, drop_parts, is_assembled
from batch_jobs.output.encoding import encode_part
from batch_jobs.output.parts import DONE_FILE, PART_FORMATS, STAGING, Result, is_part, part_name
from batch_jobs.storage import Storage

ODD_IDS = ["é", "e\u0301", "\u2028", "\x85", "\x00", "a\nb", "\U0001f600", "\uff21", "A", " A", '"', "\\", "0", "00"]
SCHEMA = pa.schema([("n", pa.int64())])
BAD = {"type": "bad", "message": "no"}


def is_bad(number: int) -> bool:
    return number % 5 == 3


def fill(storage: Storage, form: str, count: int = 40, per_part: int = 6, seed: int = 1) -> list[str]:
    """A finished job whose rows were committed in another order; returns the ids in input order."""
    ids = ODD_IDS + [f"row-{number}" for number in range(count - len(ODD_IDS))]
    numbers = list(range(count))
    random.Random(seed).shuffle(numbers)
    for part, start in enumerate(range(0, count, per_part)):
        rows = []
        for number in numbers[start : start + per_part]:
            output = {"n": number} if form == "openai" else f"answer {number}"
            result = Result(error=BAD) if is_bad(number) else Result(output)
            rows.append((Row(ids[number], {"n": number}), result))
        storage.write(part_name(f"e{part % 3}", part, form), encode_part(rows, form, SCHEMA))
    return ids


def ordered_rows(storage: Storage, form: str) -> list[dict]:
    rows: list[dict] = []
    for name in storage.names():
        if name.startswith("ordered-"):
            if form == "parquet":
                with storage.open_input(name) as source:
                    rows += pq.read_table(source).to_pylist()
            else:
                rows += [json.loads(line) for line in storage.read(name).split(b"\n") if line]
    return rows


def check(storage: Storage, form: str, ids: list[str]) -> None:
    """Every row once, in input order, with its own content."""
    if form == "openai":
        good = [json.loads(line) for line in storage.read("output.jsonl").split(b"\n") if line]
        failed = [json.loads(line) for line in storage.read("errors.jsonl").split(b"\n") if line]
        assert [line["custom_id"] for line in good] == [i for number, i in enumerate(ids) if not is_bad(number)]
        assert [line["custom_id"] for line in failed] == [i for number, i in enumerate(ids) if is_bad(number)]
        assert all(ids[line["response"]["body"]["n"]] == line["custom_id"] for line in good)
        return
    rows = ordered_rows(storage, form)
    assert [row["id"] for row in rows] == ids
    assert [row["n"] for row in rows] == list(range(len(ids)))
    assert [row["output"] for row in rows] == [None if is_bad(n) else f"answer {n}" for n in range(len(ids))]


@pytest.mark.parametrize("form", PART_FORMATS)
@pytest.mark.parametrize("memory_bytes", [1, 64 << 20])
@pytest.mark.parametrize("slice_rows", [3, 1000])
def test_rows_come_out_in_input_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, memory_bytes: int, slice_rows: int
) -> None:
    monkeypatch.setattr(module, "_MIN_SLICE_ROWS", min(slice_rows, 64))
    monkeypatch.setattr(module, "_MAX_SLICE_ROWS", slice_rows)
    storage = Storage(str(tmp_path))
    ids = fill(storage, form)
    done = assemble(storage, "run", iter(ids), form, Limits(memory_bytes=memory_bytes))
    assert (done.rows, done.errors) == (40, 8)
    assert set(done.files) <= set(storage.names())
    check(storage, form, ids)


@pytest.mark.parametrize("form", PART_FORMATS)
def test_unfinished_files_are_under_staging_alone(tmp_path: Path, form: str) -> None:
    """A killed process leaves what it was writing; only there does the next run remove it."""
    storage = Storage(str(tmp_path))
    ids = fill(storage, form)
    before = set(tmp_path.iterdir())

    def watched() -> Iterator[str]:
        for row_id in ids:
            assert set(tmp_path.iterdir()) - before == {tmp_path / STAGING}
            yield row_id

    assemble(storage, "run", watched(), form, Limits(rows_per_file=4))
    storage.discard_folder(STAGING)
    check(storage, form, ids)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_files_keep_to_their_limits(tmp_path: Path, form: str) -> None:
    storage = Storage(str(tmp_path))
    ids = fill(storage, form)
    done = assemble(storage, "run", ids, form, Limits(rows_per_file=15))
    assert done.files == [f"ordered-{number:05d}.{form}" for number in range(3)]
    check(storage, form, ids)
    smaller = assemble(storage, "run2", ids, form, Limits(file_bytes=400))
    assert len(smaller.files) > 3
    check(storage, form, ids)
    again = assemble(storage, "run3", ids, form)
    assert [name for name in storage.names() if name.startswith("ordered-")] == again.files == done.files[:1]
    check(storage, form, ids)


def test_a_row_larger_than_a_file_gets_its_own(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    ids = fill(storage, "jsonl")
    assert len(assemble(storage, "run", ids, "jsonl", Limits(file_bytes=1)).files) == 40
    check(storage, "jsonl", ids)


def test_a_missing_row_fails_and_leaves_nothing(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for form in PART_FORMATS:
        ids = fill(storage, form)
        before = storage.names()
        with pytest.raises(JobFailed, match="row 'nobody' is in no part"):
            assemble(storage, "run", [*ids, "nobody"], form)
        assert storage.names() == before
        drop_parts(storage)
    with pytest.raises(JobFailed):
        assemble(storage, "run", ["nobody"], "jsonl")


def test_a_row_that_landed_twice_is_written_once(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    ids = fill(storage, "jsonl")
    late = encode_part([(Row(ids[0], {"n": 0}), Result("late"))], "jsonl", SCHEMA)
    storage.write(part_name("zz", 0, "jsonl"), late)
    assert assemble(storage, "run", ids, "jsonl").rows == 40
    check(storage, "jsonl", ids)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    ids = fill(storage, "jsonl")
    storage.write("part-x-00000.jsonl", b"{")
    with pytest.raises(JobRefused, match=r"part-x-00000\.jsonl"):
        assemble(storage, "run", ids, "jsonl")


def test_parts_are_not_read_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rows that finished near their place, each part is loaded about once however small a slice is."""
    monkeypatch.setattr(module, "_MIN_SLICE_ROWS", 8)
    monkeypatch.setattr(module, "_MAX_SLICE_ROWS", 8)
    storage = Storage(str(tmp_path))
    ids = [str(number) for number in range(400)]
    for part, start in enumerate(range(0, 400, 20)):
        rows = [(Row(row_id, {}), Result("x")) for row_id in reversed(ids[start : start + 20])]
        storage.write(part_name("e", part, "jsonl"), encode_part(rows, "jsonl", SCHEMA))
    loaded: list[str] = []
    load = module.load_block
    monkeypatch.setattr(module, "load_block", lambda s, name, form: loaded.append(name) or load(s, name, form))
    assemble(storage, "run", ids, "jsonl", Limits(memory_bytes=4 * 20 * 200))
    assert len(loaded) == len(set(loaded)) == 20


class Crash(BaseException):
    """Not an Exception: nothing may handle it, as nothing handles a kill."""


class CrashingStorage(Storage):
    """Dies before its `steps_left`-th change of the folder, and stays dead: a killed process cleans nothing up."""

    def __init__(self, location: str, steps_left: int) -> None:
        super().__init__(location)
        self.steps_left = steps_left

    def _step(self) -> None:
        self.steps_left -= 1
        if self.steps_left < 0:
            raise Crash

    def write(self, name: str, data: bytes) -> None:
        self._step()
        super().write(name, data)

    def move(self, source: str, target: str) -> None:
        self._step()
        super().move(source, target)

    def delete(self, name: str) -> None:
        self._step()
        super().delete(name)

    @contextlib.contextmanager
    def open_writer(self, name: str) -> Iterator[IO[bytes]]:
        self._step()
        with super().open_writer(name) as stream:
            yield stream
            self._step()


def end_of_job(storage: Storage, run_id: str, ids: list[str], form: str) -> None:
    """What a driver does once every row is committed; see the module's order of events."""
    storage.discard_folder(STAGING)
    if not is_assembled(storage):
        assemble(storage, run_id, ids, form, Limits(rows_per_file=15))
        storage.write(DONE_FILE, orjson.dumps({"assembled": True}))
    drop_parts(storage)


@pytest.mark.parametrize("form", PART_FORMATS)
def test_a_crash_after_any_step_is_healed_by_a_rerun(tmp_path: Path, form: str) -> None:
    steps = 0
    while True:
        folder = str(tmp_path / str(steps))
        storage = Storage(folder)
        storage.make_folder()
        ids = fill(storage, form)
        storage.write("ordered-00007.jsonl", b"of an earlier try\n")
        try:
            end_of_job(CrashingStorage(folder, steps), "first", ids, form)
        except Crash:
            crashed = True
        else:
            crashed = False
        if is_assembled(storage):
            check_final(storage, form, ids)  # what done.json promises holds already
        end_of_job(storage, "second", ids, form)
        check_final(storage, form, ids)
        assert not any(map(is_part, storage.names()))
        if not crashed:
            break
        steps += 1
    assert steps > 10


def check_final(storage: Storage, form: str, ids: list[str]) -> None:
    if form == "openai":
        storage.delete("ordered-00007.jsonl")  # no job of OpenAI requests ever writes one
    check(storage, form, ids)


def test_done_without_assembling_is_not_assembled(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert not is_assembled(storage)
    storage.write(DONE_FILE, b'{"rows": 3}')
    assert not is_assembled(storage)
    storage.write(DONE_FILE, b'{"rows": 3, "assembled": true}')
    assert is_assembled(storage)

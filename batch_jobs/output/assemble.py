"""The rows of a finished job in input order.

Role: turn parts into the files that `--preserve-order`, and jobs of OpenAI batch requests, end with. Owns: the order of
events below. Must not know: how rows were computed, where ids come from.

Order of events, under the output's lock, once every row is committed:

1. `assemble` writes the files under `_staging/<run>/`; OpenAI files on object stores, which may be larger than the 5 GB
   that S3 can copy, go to their final names as streams that are invisible until they are closed;
2. it deletes ordered files of an earlier try (which may have been cut elsewhere) and moves the new ones to their names;
3. the caller writes done.json with `{"assembled": true}`;
4. the caller calls `drop_parts`.

A crash before 3 leaves every part where it was: a rerun finds all rows committed and no done.json that says assembled,
and starts over at 1. A crash after 3 leaves complete files and some parts: a rerun sees `is_assembled` and *must not*
count parts, only drop the rest. Readers that want all rows and each once wait for done.json.

Memory: the index (part_index.py), the rows of one slice of the input (three times, while they are put in order), and
recently used parts; the last two share `memory_bytes`. A slice is as large as that allows, so that a part is read a few
times at most when rows finished in another order than that of the input.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import orjson

from batch_jobs.output.committed import part_names
from batch_jobs.output.part_index import PartIndex, Places
from batch_jobs.output.parts import (
    DONE_FILE,
    OPENAI,
    OPENAI_ERRORS_FILE,
    OPENAI_OUTPUT_FILE,
    ORDERED_PREFIX,
    staged_name,
)
from batch_jobs.output.row_blocks import BlockWriter, RowBlock, block_writer, join, load_block
from batch_jobs.storage import Storage

ROWS_PER_FILE = 50_000
FILE_BYTES = 256 << 20
MEMORY_BYTES = 256 << 20
_MIN_SLICE_ROWS, _MAX_SLICE_ROWS = 64, 65_536


@dataclass(frozen=True)
class Limits:
    """Sizes of files and of what is in memory."""

    rows_per_file: int = ROWS_PER_FILE
    file_bytes: int = FILE_BYTES
    memory_bytes: int = MEMORY_BYTES


@dataclass(frozen=True)
class Assembled:
    """What was written."""

    files: list[str]
    rows: int
    errors: int


def assemble(
    storage: Storage, run_id: str, ids: Iterable[str], part_format: str, limits: Limits | None = None
) -> Assembled:
    """Events 1 and 2: the rows of `ids` in their order. Raises JobFailed if one of them is not committed."""
    limits = limits or Limits()
    storage.make_folder(staged_name(run_id, "").rstrip("/"))
    slices = _Slices(storage, PartIndex(storage), part_format, limits.memory_bytes)
    if part_format == OPENAI:
        return _write_openai(storage, run_id, slices.read(ids))
    return _write_ordered(storage, run_id, slices.read(ids), part_format, limits)


def is_assembled(storage: Storage) -> bool:
    """Whether an earlier run came as far as event 3: the files are complete, and parts that are left are not needed."""
    try:
        return bool(orjson.loads(storage.read(DONE_FILE)).get("assembled"))
    except FileNotFoundError:
        return False


def drop_parts(storage: Storage) -> None:
    """Event 4."""
    for _ in storage.map(storage.delete, part_names(storage)):
        pass


@dataclass(frozen=True)
class _Slice:
    """Consecutive rows of the input."""

    block: Any
    failed: np.ndarray[Any, np.dtype[np.bool_]]


class _Slices:
    """Reads rows in the order of ids, a slice at a time."""

    def __init__(self, storage: Storage, index: PartIndex, part_format: str, memory_bytes: int) -> None:
        self._storage = storage
        self._index = index
        self._format = part_format
        self._parts_bytes = memory_bytes // 2
        self._slice_bytes = memory_bytes // 6
        self._kept: OrderedDict[str, RowBlock] = OrderedDict()
        self._kept_bytes = 0

    def read(self, ids: Iterable[str]) -> Iterator[_Slice]:
        walk, rows = iter(ids), _MIN_SLICE_ROWS
        while some := list(itertools.islice(walk, rows)):
            places = self._index.find(some)
            block = self._block(places)
            # What a row takes in memory is only known once some are there: Parquet may be packed to any degree.
            fitting = self._slice_bytes * len(some) // max(1, block.size_bytes)
            rows = max(_MIN_SLICE_ROWS, min(_MAX_SLICE_ROWS, fitting))
            yield _Slice(block, places.failed)

    def _block(self, places: Places) -> Any:
        """Rows part by part, then put back into the order that was asked for."""
        by_part = np.argsort(places.parts, kind="stable")
        wanted, firsts = np.unique(places.parts[by_part], return_index=True)
        groups = dict(zip((self._index.names[part] for part in wanted), np.split(by_part, firsts[1:]), strict=True))
        picked, positions = [], []
        for name, block in self._parts(list(groups)):
            picked.append(block.pick(places.rows[groups[name]]))
            positions.append(groups[name])
        back = np.argsort(np.concatenate(positions), kind="stable")
        return join(picked, self._format).pick(back)

    def _parts(self, names: list[str]) -> Iterator[tuple[str, RowBlock]]:
        """Parts in memory first: reading the others may push them out."""
        absent = [name for name in names if name not in self._kept]
        for name in names:
            if name in self._kept:
                self._kept.move_to_end(name)
                yield name, self._kept[name]
        loaded = self._storage.map(lambda name: load_block(self._storage, name, self._format), absent)
        for name, block in zip(absent, loaded, strict=True):
            self._keep(name, block)
            yield name, block

    def _keep(self, name: str, block: RowBlock) -> None:
        self._kept[name] = block
        self._kept_bytes += block.size_bytes
        while self._kept_bytes > self._parts_bytes:
            self._kept_bytes -= self._kept.popitem(last=False)[1].size_bytes


def _write_openai(storage: Storage, run_id: str, slices: Iterator[_Slice]) -> Assembled:
    names = [OPENAI_OUTPUT_FILE, OPENAI_ERRORS_FILE]
    targets = [staged_name(run_id, name) if storage.is_local else name for name in names]
    rows = errors = 0
    with storage.open_writer(targets[0]) as output, storage.open_writer(targets[1]) as failures:
        for part in slices:
            for line, failed in zip(part.block.lines, part.failed, strict=True):
                (failures if failed else output).write(line)
            rows += len(part.failed)
            errors += int(part.failed.sum())
    for target, name in zip(targets, names, strict=True):
        if target != name:
            storage.move(target, name)
    return Assembled(names, rows, errors)


def _write_ordered(
    storage: Storage, run_id: str, slices: Iterator[_Slice], part_format: str, limits: Limits
) -> Assembled:
    rows = errors = 0
    with _NumberedFiles(storage, run_id, part_format, limits) as files:
        for part in slices:
            files.write(part.block)
            rows += len(part.failed)
            errors += int(part.failed.sum())
    for old in storage.names():
        if old.startswith(ORDERED_PREFIX):
            storage.delete(old)
    for name in files.names:
        storage.move(staged_name(run_id, name), name)
    return Assembled(files.names, rows, errors)


class _NumberedFiles:
    """Staged files that follow each other, none over the limits."""

    def __init__(self, storage: Storage, run_id: str, part_format: str, limits: Limits) -> None:
        self._storage = storage
        self._run_id = run_id
        self._format = part_format
        self._limits = limits
        self._open = contextlib.ExitStack()
        self._writer: BlockWriter | None = None
        self._rows = self._bytes = 0
        self.names: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._close()
        else:
            self._open.__exit__(kind, error, trace)

    def write(self, block: Any) -> None:
        start = 0
        row_bytes = max(1, block.size_bytes // max(1, len(block)))
        while start < len(block):
            stop = min(len(block), start + self._room(row_bytes))
            if stop == start:
                self._close()
                continue
            self._append(block.slice(start, stop), (stop - start) * row_bytes)
            start = stop

    def _room(self, row_bytes: int) -> int:
        room = min(self._limits.rows_per_file - self._rows, (self._limits.file_bytes - self._bytes) // row_bytes)
        return max(0 if self._rows else 1, room)

    def _append(self, block: Any, size_bytes: int) -> None:
        if self._writer is None:
            name = f"{ORDERED_PREFIX}{len(self.names):05d}.{self._format}"
            stream = self._open.enter_context(self._storage.open_writer(staged_name(self._run_id, name)))
            self._writer = block_writer(stream, self._format)
            self.names.append(name)
        self._writer.write(block)
        self._rows += len(block)
        self._bytes += size_bytes

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.finish()
            self._open.close()
        self._writer = None
        self._rows = self._bytes = 0

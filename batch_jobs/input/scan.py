"""One pass over the input before anything starts: ids, duplicates, columns, a digest, and where every row lies.

Role: know the whole job before it costs anything. Owns: row ids. Must not know: prompts' validity, engines, Ray.

A row's id is its `id` value if it has one, else `<file name>:<row number>`: the same on every rerun. Duplicate ids
refuse the job, as "every row once" would mean nothing. The digest covers every byte of JSONL and CSV files and the
footer of Parquet files (which names sizes, offsets and statistics of all column chunks), so a changed input is
noticed.

Limit: all ids, offsets and lengths are held in the driver, about 150 bytes a row (10 million rows: 1.5 GB). The pass
is one process reading once: about 1 million short JSONL rows in some seconds; Parquet reads its id column alone.
"""

from __future__ import annotations

import hashlib
import io
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from batch_jobs.errors import JobRefused, RowError
from batch_jobs.input.columns import ColumnKinds
from batch_jobs.input.formats import Record, csv_records, jsonl_records, parse_csv, parse_csv_header, parse_json
from batch_jobs.input.locations import InputFile
from batch_jobs.input.rows import ID_COLUMN, MESSAGES_COLUMN, PROMPT_COLUMN, RESULT_COLUMNS, given_id

_SHOWN_IDS = 5
_READ_BUFFER_BYTES = 1 << 20


@dataclass
class FileScan:
    """The rows of one file, column by column. Parquet: `starts` are row indexes and `lengths` stays empty."""

    file: InputFile
    header: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    starts: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))


@dataclass
class Scan:
    """Everything the driver knows about the input."""

    files: list[FileScan]
    columns: ColumnKinds
    digest: str

    @property
    def row_count(self) -> int:
        return sum(len(scan.ids) for scan in self.files)


class _Scanner:
    def __init__(self, limit: int | None) -> None:
        self.columns = ColumnKinds()
        self.digest = hashlib.blake2b(digest_size=16)
        self._left = limit
        self._seen: set[str] = set()
        self._doubled: list[str] = []

    def scan(self, file: InputFile) -> FileScan:
        self.digest.update(f"{file.name}\0{file.size_bytes}\0".encode())
        result = FileScan(file)
        if self._left != 0:
            {"jsonl": self._jsonl, "csv": self._csv, "parquet": self._parquet}[file.format](result)
        return result

    def refuse_doubled(self) -> None:
        if self._doubled:
            shown = ", ".join(repr(row_id) for row_id in self._doubled[:_SHOWN_IDS])
            more = f" and {len(self._doubled) - _SHOWN_IDS} more" if len(self._doubled) > _SHOWN_IDS else ""
            raise JobRefused(f"ids must be unique, but these occur more than once: {shown}{more}. Rename or drop them.")

    def _add(self, result: FileScan, row_id: str, start: int, length: int | None) -> bool:
        """Note one row; False when the limit is reached."""
        if row_id in self._seen:
            self._doubled.append(row_id)
        self._seen.add(row_id)
        result.ids.append(row_id)
        result.starts.append(start)
        if length is not None:
            result.lengths.append(length)
        if self._left is not None:
            self._left -= 1
        return self._left != 0

    def _records(self, result: FileScan, records: Iterator[Record], parse: Callable[[bytes], dict[str, Any]]) -> None:
        for record in records:
            self.digest.update(record.data)
            row_id = None
            try:
                columns = parse(record.data)
                self.columns.see(columns)
                row_id = given_id(columns)
            except RowError:
                pass  # the reader meets the same problem and makes it the row's error
            row_id = row_id or position_id(result.file, record.number)
            if not self._add(result, row_id, record.start, len(record.data)):
                return

    def _jsonl(self, result: FileScan) -> None:
        with open_lines(result.file) as stream:
            self._records(result, jsonl_records(stream), parse_json)

    def _csv(self, result: FileScan) -> None:
        with open_lines(result.file) as stream:
            records = csv_records(stream)
            first = next(records, None)
            if first is None:
                return
            result.header = parse_csv_header(first.data)
            self.digest.update(first.data)
            self.columns.see(dict.fromkeys(result.header))
            self._records(result, records, lambda data: parse_csv(data, result.header))

    def _parquet(self, result: FileScan) -> None:
        import pyarrow.parquet as pq

        file = result.file
        with file.filesystem.open_input_file(file.path) as source:
            self.digest.update(_parquet_footer(source))
            source.seek(0)
            table = pq.ParquetFile(source)
            self.columns.see_arrow(table.schema_arrow)
            if ID_COLUMN not in table.schema_arrow.names:
                for index in range(table.metadata.num_rows):
                    if not self._add(result, position_id(file, index + 1), index, None):
                        return
                return
            index = 0
            for batch in table.iter_batches(columns=[ID_COLUMN]):
                for value in batch.column(0).to_pylist():
                    row_id = parquet_id(value) or position_id(file, index + 1)
                    if not self._add(result, row_id, index, None):
                        return
                    index += 1


def position_id(file: InputFile, number: int) -> str:
    return f"{file.name}:{number}"


def parquet_id(value: Any) -> str | None:
    try:
        return given_id({ID_COLUMN: value})
    except RowError:
        return None


def open_lines(file: InputFile) -> io.BufferedReader:
    """A binary stream that iterates over lines."""
    return io.BufferedReader(file.filesystem.open_input_file(file.path), _READ_BUFFER_BYTES)


def _parquet_footer(source: Any) -> bytes:
    """The serialized metadata at the end of a Parquet file, whose length stands before the closing magic number."""
    size = source.size()
    source.seek(max(0, size - 8))
    footer_bytes = int.from_bytes(source.read(4), "little") + 8
    source.seek(max(0, size - footer_bytes))
    return bytes(source.read(footer_bytes))


def scan_inputs(files: list[InputFile], limit: int | None) -> Scan:
    """Read all inputs once. Raises JobRefused for input that no row of can be answered, or that is ambiguous."""
    scanner = _Scanner(limit)
    scans = []
    for file in files:
        try:
            scans.append(scanner.scan(file))
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors too
            raise JobRefused(f"input {file.path}: cannot be read as {file.format}: {error}") from error
    scanner.refuse_doubled()
    scan = Scan(scans, scanner.columns, scanner.digest.hexdigest())
    if scan.row_count == 0:
        raise JobRefused(f"the input is empty: {', '.join(file.path for file in files)} hold no rows.")
    _check_columns(scan.columns.names)
    return scan


def _check_columns(names: list[str]) -> None:
    if PROMPT_COLUMN not in names and MESSAGES_COLUMN not in names:
        seen = ", ".join(names) or "none: no line is a JSON object"
        raise JobRefused(f"no prompt or messages column in the input (columns: {seen}). Rename the column that has it.")
    taken = sorted(set(names) & set(RESULT_COLUMNS))
    if taken:
        raise JobRefused(f"input columns {', '.join(taken)} would collide with the job's own results. Rename them.")

"""One pass over the input before anything starts: ids, duplicates, columns, a digest, and where the pending rows lie.

Role: know the whole job before it costs anything. Owns: what makes an input the same as another's.
Must not know: prompts' validity, engines, Ray.

Duplicate ids refuse the job, as "every row once" would mean nothing. The digest covers every record of JSONL and CSV
files and the footer of Parquet files (which names sizes, offsets and statistics of all column chunks), so a changed
input is noticed.

Memory: 16 bytes a row while the scan runs (the ids' digests, and as much again to find duplicates), a byte a row
afterwards (chunks.py). The pass is one process reading once; Parquet reads its id column alone.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import Any

from batch_jobs.errors import JobRefused
from batch_jobs.input.checks import check_columns
from batch_jobs.input.chunks import ChunkBuilder, Chunks, SourceFile
from batch_jobs.input.columns import ColumnKinds
from batch_jobs.input.file_rows import csv_header, iterate_ids, parquet_ids, text_records, text_row
from batch_jobs.input.id_set import IdSet, repeated
from batch_jobs.input.locations import InputFile, open_lines
from batch_jobs.input.spec import JobSpec

_SHOWN_IDS = 5


@dataclass(frozen=True)
class Scan:
    """Everything the driver knows about the input."""

    row_count: int
    pending_count: int
    """Rows that no earlier run has committed."""
    columns: ColumnKinds
    digest: str
    chunks: Chunks
    """Where the pending rows lie."""


class _Scanner:
    def __init__(self, limit: int | None, done: IdSet, id_column: str) -> None:
        self.columns = ColumnKinds()
        self.digest = hashlib.blake2b(digest_size=16)
        self.builder = ChunkBuilder(done)
        self._limit = limit
        self._id_column = id_column

    def scan(self, file: InputFile) -> None:
        self.digest.update(f"{file.name}\0{file.size_bytes}\0".encode())
        if self._full:
            return
        if file.format == "parquet":
            self._parquet(file)
        else:
            self._text(file)

    @property
    def _full(self) -> bool:
        return self._limit is not None and self.builder.row_count >= self._limit

    def _text(self, file: InputFile) -> None:
        header: tuple[str, ...] = ()
        if file.format == "csv":
            header, header_data = csv_header(file)
            self.digest.update(header_data)
            self.columns.see(dict.fromkeys(header))
        self.builder.open_file(SourceFile(file, header))
        with open_lines(file) as stream:
            for record in text_records(file, stream):
                self.digest.update(record.data)
                row = text_row(file, record, header, self._id_column)
                self.columns.see(row.columns)
                self.builder.add(row.id, record.start, record.start + len(record.data), record.number)
                if self._full:
                    return

    def _parquet(self, file: InputFile) -> None:
        import pyarrow.parquet as pq

        with file.filesystem.open_input_file(file.path) as source:
            self.digest.update(_parquet_footer(source))
            source.seek(0)
            table = pq.ParquetFile(source)
            self.columns.see_arrow(table.schema_arrow)
            groups = [table.metadata.row_group(index) for index in range(table.metadata.num_row_groups)]
            bytes_ = sum(group.total_byte_size for group in groups)
            self.builder.open_file(SourceFile(file, (), max(1, bytes_ // max(1, table.metadata.num_rows))))
            ends = set(itertools.accumulate(group.num_rows for group in groups))
            for index, row_id in enumerate(parquet_ids(file, table, self._id_column)):
                self.builder.add(row_id, index, index + 1, index + 1)
                if index + 1 in ends:  # no chunk spans two row groups, which are read whole
                    self.builder.close()
                if self._full:
                    return


def _parquet_footer(source: Any) -> bytes:
    """The serialized metadata at the end of a Parquet file, whose length stands before the closing magic number."""
    size = source.size()
    source.seek(max(0, size - 8))
    footer_bytes = int.from_bytes(source.read(4), "little") + 8
    source.seek(max(0, size - footer_bytes))
    return bytes(source.read(footer_bytes))


def scan_inputs(files: list[InputFile], limit: int | None, done: IdSet, spec: JobSpec) -> Scan:
    """Read all inputs once. Raises JobRefused for input that no row of can be answered, or that is ambiguous.

    `done` are the ids that are committed already.
    """
    scanner = _Scanner(limit, done, spec.id_column)
    for file in files:
        if spec.openai_batch and file.format != "jsonl":
            raise JobRefused(
                f"input {file.path}: OpenAI batch requests are JSONL. Give other files to a job of their own."
            )
        try:
            scanner.scan(file)
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors too
            raise JobRefused(f"input {file.path}: cannot be read as {file.format}: {error}") from error
    builder = scanner.builder
    if builder.row_count == 0:
        raise JobRefused(f"the input is empty: {', '.join(file.path for file in files)} hold no rows.")
    check_columns(scanner.columns.names, spec)
    _refuse_doubled(files, builder.digests, spec)
    chunks = builder.chunks()
    return Scan(builder.row_count, builder.pending_count, scanner.columns, scanner.digest.hexdigest(), chunks)


def _refuse_doubled(files: list[InputFile], digests: bytearray, spec: JobSpec) -> None:
    """Only the numbers of doubled rows are known; their names take another pass, up to the last one shown."""
    firsts, extra = repeated(digests)
    if not extra:
        return
    shown = set(firsts[:_SHOWN_IDS].tolist())
    ids = enumerate(iterate_ids(files, max(shown) + 1, spec.id_column))
    names = ", ".join(repr(row_id) for number, row_id in ids if number in shown)
    more = f" and {len(firsts) - _SHOWN_IDS} more" if len(firsts) > _SHOWN_IDS else ""
    raise JobRefused(
        f"{spec.id_column}s must be unique, but these occur more than once: {names}{more}. Rename or drop them."
    )

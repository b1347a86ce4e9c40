"""The rows still to do, as a Ray Data source.

Role: cut the scan into small chunks and read one chunk in a Ray task. Owns: chunk sizes.
Must not know: engines, the output.

A chunk is one Ray block, one actor call and one batch: with rows committed as they finish, all that a big block would
do is hold more rows back when an actor dies and leave engines idle at the end of the job.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batch_jobs.errors import RowError
from batch_jobs.input.formats import parse_csv, parse_json
from batch_jobs.input.locations import InputFile
from batch_jobs.input.rows import Row, given_id
from batch_jobs.input.scan import FileScan, Scan

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Datasource

ROW_FIELD = "row"
MAX_CHUNK_ROWS = 64
_MAX_CHUNK_BYTES = 8 << 20
_MAX_GAP_BYTES = 1 << 20


@dataclass(frozen=True)
class Chunk:
    """Some rows of one file that lie close together."""

    file: InputFile
    header: tuple[str, ...]
    ids: tuple[str, ...]
    starts: tuple[int, ...]
    lengths: tuple[int, ...]


def chunk_rows(pending_rows: int, engines: int) -> int:
    """Rows per chunk: big enough to be cheap, small enough that every engine gets many of them."""
    return max(1, min(MAX_CHUNK_ROWS, pending_rows // (engines * 8)))


def make_chunks(scan: Scan, done: Collection[str], rows_per_chunk: int) -> Iterator[Chunk]:
    """Chunks of all rows whose id is not in `done`."""
    for file in scan.files:
        pending: list[int] = []
        for index, row_id in enumerate(file.ids):
            if row_id in done:
                continue
            if pending and (len(pending) == rows_per_chunk or _too_far(file, pending, index)):
                yield _chunk(file, pending)
                pending = []
            pending.append(index)
        if pending:
            yield _chunk(file, pending)


def _too_far(file: FileScan, pending: list[int], index: int) -> bool:
    """Whether reading this row together with the pending ones would fetch too much that nobody needs."""
    if not file.lengths:
        return False
    end = file.starts[index] + file.lengths[index]
    gap = file.starts[index] - (file.starts[pending[-1]] + file.lengths[pending[-1]])
    return gap > _MAX_GAP_BYTES or end - file.starts[pending[0]] > _MAX_CHUNK_BYTES


def _chunk(file: FileScan, indexes: list[int]) -> Chunk:
    return Chunk(
        file.file,
        tuple(file.header),
        tuple(file.ids[index] for index in indexes),
        tuple(file.starts[index] for index in indexes),
        tuple(file.lengths[index] for index in indexes) if file.lengths else (),
    )


def read_chunk(chunk: Chunk) -> list[Row]:
    """The rows of a chunk, in order; a row that cannot be read carries its problem."""
    if chunk.file.format == "parquet":
        return [_row(row_id, columns, None) for row_id, columns in zip(chunk.ids, _parquet_rows(chunk), strict=True)]
    first = chunk.starts[0]
    with chunk.file.filesystem.open_input_file(chunk.file.path) as source:
        source.seek(first)
        data = source.read(chunk.starts[-1] + chunk.lengths[-1] - first)
    rows = []
    for row_id, start, length in zip(chunk.ids, chunk.starts, chunk.lengths, strict=True):
        record = data[start - first : start - first + length]
        try:
            is_csv = chunk.file.format == "csv"
            columns = parse_csv(record, list(chunk.header)) if is_csv else parse_json(record)
        except RowError as problem:
            rows.append(Row(row_id, {}, problem))
        else:
            rows.append(_row(row_id, columns, None))
    return rows


def _row(row_id: str, columns: dict[str, Any], problem: RowError | None) -> Row:
    try:
        given_id(columns)
    except RowError as error:
        problem = error
    return Row(row_id, columns, problem)


def _parquet_rows(chunk: Chunk) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    with chunk.file.filesystem.open_input_file(chunk.file.path) as source:
        metadata = pq.read_metadata(source)
    bounds = [0]
    for group in range(metadata.num_row_groups):
        bounds.append(bounds[-1] + metadata.row_group(group).num_rows)
    rows: list[dict[str, Any]] = []
    group = 0
    for index in chunk.starts:
        while index >= bounds[group + 1]:
            group += 1
        table = _row_group(chunk.file, group)
        rows.extend(table.slice(index - bounds[group], 1).to_pylist())
    return rows


@functools.lru_cache(maxsize=2)
def _row_group(file: InputFile, group: int) -> pa.Table:
    """A row group, kept while neighbouring chunks are read in the same worker."""
    import pyarrow.parquet as pq

    with file.filesystem.open_input_file(file.path) as source:
        return pq.ParquetFile(source).read_row_group(group)


def _read_block(chunk: Chunk) -> Iterable[pa.Table]:
    import pyarrow as pa

    yield pa.table({ROW_FIELD: [row.pack() for row in read_chunk(chunk)]})


def chunk_source(chunks: list[Chunk]) -> Datasource:
    """A Ray Data source that reads one chunk per task."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class ChunkSource(Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return sum(sum(chunk.lengths) for chunk in chunks)

        def get_read_tasks(
            self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
        ) -> list[ReadTask]:
            return [
                ReadTask(
                    functools.partial(_read_block, chunk),
                    BlockMetadata(
                        num_rows=len(chunk.ids),
                        size_bytes=sum(chunk.lengths) or None,
                        input_files=None,
                        exec_stats=None,
                    ),
                )
                for chunk in chunks
            ]

    return ChunkSource()

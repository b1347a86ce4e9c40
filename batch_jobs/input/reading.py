"""The rows still to do, as a Ray Data source of prepared rows.

Role: read blocks of chunks in Ray tasks, and prepare their rows there. Owns: the form of a block.
Must not know: engines, the output, in which order rows are run.

A block is an Arrow table with one binary column, PREPARED_FIELD: a pickled `Prepared` per pending row, in order of the
input. The work queue unpickles those few facts; the payload in them stays closed until an engine opens it.
"""

from __future__ import annotations

import functools
import io
import itertools
import pickle
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from batch_jobs.errors import JobFailed
from batch_jobs.input.asks import prepare
from batch_jobs.input.chunks import Chunk, Chunks
from batch_jobs.input.file_rows import named_row, text_row
from batch_jobs.input.formats import csv_records, jsonl_records
from batch_jobs.input.locations import InputFile
from batch_jobs.input.prepared import Prepared
from batch_jobs.input.rows import Row
from batch_jobs.input.spec import JobSpec

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Datasource

PREPARED_FIELD = "prepared"


def read_rows(chunks: Sequence[Chunk], id_column: str = "id") -> Iterator[tuple[int, Row]]:
    """The pending rows and their numbers, in order; a row that cannot be read carries its problem."""
    for source, members in itertools.groupby(chunks, key=lambda chunk: chunk.source):
        if source.file.format == "parquet":
            for chunk in members:
                yield from _parquet_rows(chunk, id_column)
        else:
            with source.file.filesystem.open_input_file(source.file.path) as stream:
                for chunk in members:
                    yield from _text_rows(chunk, stream, id_column)


def _text_rows(chunk: Chunk, stream: Any, id_column: str) -> Iterator[tuple[int, Row]]:
    file, header = chunk.source.file, chunk.source.header
    stream.seek(chunk.start)
    lines = io.BytesIO(stream.read(chunk.end - chunk.start))
    split = csv_records if file.format == "csv" else jsonl_records
    records = list(split(lines, chunk.number))
    _check_unchanged(chunk, len(records))
    for index in _pending(chunk):
        yield chunk.first_row + index, text_row(file, records[index], header, id_column)


def _parquet_rows(chunk: Chunk, id_column: str) -> Iterator[tuple[int, Row]]:
    file = chunk.source.file
    bounds = _row_group_bounds(file)
    group = next((index for index, end in enumerate(bounds[1:]) if chunk.start < end), None)
    _check_unchanged(chunk, 0 if group is None else min(chunk.end, bounds[group + 1]) - chunk.start)
    assert group is not None
    records = _row_group(file, group).slice(chunk.start - bounds[group], chunk.rows).to_pylist()
    for index in _pending(chunk):
        yield chunk.first_row + index, named_row(file, chunk.number + index, records[index], id_column)


def _pending(chunk: Chunk) -> Iterator[int]:
    return (index for index in range(chunk.rows) if chunk.pending >> index & 1)


def _check_unchanged(chunk: Chunk, rows: int) -> None:
    if rows != chunk.rows:
        raise JobFailed(
            f"input {chunk.source.file.path} changed while the job ran: {rows} rows where {chunk.rows} were. "
            "Restore it and rerun."
        )


@functools.lru_cache(maxsize=16)
def _row_group_bounds(file: InputFile) -> list[int]:
    """Index of the first row of each row group, and behind the last one."""
    import pyarrow.parquet as pq

    with file.filesystem.open_input_file(file.path) as source:
        metadata = pq.read_metadata(source)
    return [0, *itertools.accumulate(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))]


@functools.lru_cache(maxsize=2)
def _row_group(file: InputFile, group: int) -> pa.Table:
    """A row group, kept while neighbouring chunks are read in the same worker."""
    import pyarrow.parquet as pq

    with file.filesystem.open_input_file(file.path) as source:
        return pq.ParquetFile(source).read_row_group(group)


def read_block(chunks: Sequence[Chunk], spec: JobSpec) -> pa.Table:
    """The pending rows of some chunks, prepared."""
    import pyarrow as pa

    rows = [pickle.dumps(prepare(row, number, spec), protocol=5) for number, row in read_rows(chunks, spec.id_column)]
    return pa.table({PREPARED_FIELD: pa.array(rows, type=pa.binary())})


def prepared_rows(block: pa.Table) -> list[Prepared]:
    """What `read_block` put in."""
    return [pickle.loads(data) for data in block.column(PREPARED_FIELD).to_pylist()]


def _read_task(chunks: Chunks, spec: JobSpec) -> Iterable[pa.Table]:
    yield read_block(chunks, spec)


def chunk_source(blocks: Sequence[Chunks], spec: JobSpec) -> Datasource:
    """A Ray Data source that reads one block per task."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    def size_bytes(block: Chunks) -> int:
        return sum(chunk.size_bytes for chunk in block)

    class ChunkSource(Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return sum(map(size_bytes, blocks))

        def get_read_tasks(
            self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
        ) -> list[ReadTask]:
            return [
                ReadTask(
                    functools.partial(_read_task, block, spec),
                    BlockMetadata(
                        num_rows=sum(chunk.pending_rows for chunk in block),
                        size_bytes=size_bytes(block),
                        input_files=None,
                        exec_stats=None,
                    ),
                )
                for block in blocks
            ]

    return ChunkSource()

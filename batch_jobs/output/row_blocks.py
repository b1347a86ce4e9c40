"""Rows of parts as they are, to be written again in another order.

Role: load a part, pick rows out of several, append rows to a file. Owns: doing so without looking into a row.
Must not know: which rows, in which order.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from batch_jobs.output.parts import PARQUET
from batch_jobs.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

Indexes = npt.NDArray[np.int64]


class RowBlock(Protocol):
    """Some rows of one job."""

    @property
    def size_bytes(self) -> int: ...

    def __len__(self) -> int: ...

    def pick(self, rows: Indexes) -> Self: ...

    def slice(self, start: int, stop: int) -> Self: ...


class BlockWriter(Protocol):
    """Rows into one open file."""

    def write(self, block: Any) -> None: ...

    def finish(self) -> None: ...


class Lines:
    """Rows of a JSONL part, each with its newline."""

    def __init__(self, lines: list[bytes]) -> None:
        self.lines = lines
        self.size_bytes = sum(map(len, lines))

    def __len__(self) -> int:
        return len(self.lines)

    def pick(self, rows: Indexes) -> Lines:
        return Lines([self.lines[row] for row in rows])

    def slice(self, start: int, stop: int) -> Lines:
        return Lines(self.lines[start:stop])


class LinesWriter:
    """Appends lines."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, block: Lines) -> None:
        self._stream.write(b"".join(block.lines))

    def finish(self) -> None:
        pass


class TableRows:
    """Rows of a Parquet part."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.size_bytes = int(table.nbytes)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def pick(self, rows: Indexes) -> TableRows:
        return TableRows(self.table.take(rows))

    def slice(self, start: int, stop: int) -> TableRows:
        return TableRows(self.table.slice(start, stop - start))


class TableWriter:
    """Appends row groups."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._writer: Any = None

    def write(self, block: TableRows) -> None:
        import pyarrow.parquet as pq

        if self._writer is None:
            self._writer = pq.ParquetWriter(self._stream, block.table.schema)
        self._writer.write_table(block.table)

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.close()


def load_block(storage: Storage, name: str, part_format: str) -> RowBlock:
    """A whole part."""
    data = storage.read(name)
    if part_format == PARQUET:
        import pyarrow.parquet as pq

        return TableRows(pq.read_table(io.BytesIO(data)))
    return Lines(io.BytesIO(data).readlines())


def join(blocks: Sequence[Any], part_format: str) -> Any:
    """The rows of several blocks, in order."""
    if part_format == PARQUET:
        import pyarrow as pa

        return TableRows(pa.concat_tables([block.table for block in blocks]))
    return Lines([line for block in blocks for line in block.lines])


def block_writer(stream: IO[bytes], part_format: str) -> BlockWriter:
    return TableWriter(stream) if part_format == PARQUET else LinesWriter(stream)

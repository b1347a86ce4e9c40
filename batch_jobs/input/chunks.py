"""Where the pending rows lie: seven numbers for up to 64 rows.

Role: all that the driver keeps of the input after the scan. Owns: chunk and block sizes.
Must not know: what rows say.

A chunk is up to MAX_CHUNK_ROWS consecutive records of one file (Parquet: of one row group) in about MAX_CHUNK_BYTES,
found again by parsing its range; a bit per row says which of them are still to do. Chunks lie in one array of numbers
(20 million rows: 20 MB) and become objects one at a time. A block is some chunks that one task reads.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from batch_jobs.input.id_set import DIGEST_BYTES, IdSet, id_digest
from batch_jobs.input.locations import InputFile

MAX_CHUNK_ROWS = 64  # the pending rows are bits of one 64-bit number
MAX_CHUNK_BYTES = 1 << 20
MAX_BLOCK_BYTES = 8 << 20
ROWS_PER_BLOCK = 1024
_FIELDS = 7  # file, start, end, first record, first row, rows, pending


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file as chunks need it."""

    file: InputFile
    header: tuple[str, ...] = ()
    """Column names of a CSV file."""
    row_bytes: int = 0
    """Mean size of a Parquet row, whose chunks are ranges of rows; 0 for other files, whose chunks are of bytes."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some consecutive rows of one file."""

    source: SourceFile
    start: int
    """First byte; Parquet: index of the first row."""
    end: int
    """Behind the last one."""
    number: int
    """Record number (formats.py) of the first row."""
    first_row: int
    """Number of the first row in the whole input, from 0."""
    rows: int
    pending: int
    """Bit i is set if row i is still to do."""

    @property
    def pending_rows(self) -> int:
        return self.pending.bit_count()

    @property
    def size_bytes(self) -> int:
        return (self.end - self.start) * (self.source.row_bytes or 1)


_SAMPLED_OF_CHUNK = 4


class Chunks(Sequence[Chunk]):
    """Chunks in order of the input. A slice shares the numbers, and is what a task gets of them."""

    def __init__(self, sources: Sequence[SourceFile], table: np.ndarray) -> None:
        self._sources = sources
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Chunk: ...
    @overload
    def __getitem__(self, index: slice) -> Chunks: ...
    def __getitem__(self, index: int | slice) -> Chunk | Chunks:
        if isinstance(index, slice):
            return Chunks(self._sources, self._table[index])
        file, start, end, number, first_row, rows, pending = self._table[index].tolist()
        return Chunk(self._sources[file], start, end, number, first_row, rows, pending % (1 << 64))

    def __iter__(self) -> Iterator[Chunk]:
        for index in range(len(self)):
            yield self[index]

    def sample(self, rows: int) -> Chunks:
        """About `rows` pending rows at even distances, a few of each chunk."""
        if not len(self):
            return self
        picked = np.unique(np.linspace(0, len(self) - 1, max(1, min(len(self), rows // _SAMPLED_OF_CHUNK))).astype(int))
        table = self._table[picked].copy()
        each = -(-rows // len(picked))
        for entry in table:
            bits = [bit for bit in range(64) if int(entry[-1]) >> bit & 1]
            kept = bits[:: max(1, len(bits) // each)][:each]
            mask = sum(1 << bit for bit in kept)
            entry[-1] = mask - (1 << 64) if mask >> 63 else mask
        return Chunks(self._sources, table)

    def __reduce__(self) -> tuple[type[Chunks], tuple[list[SourceFile], np.ndarray]]:
        """Only the files that these chunks are of."""
        files, places = np.unique(self._table[:, 0], return_inverse=True)
        table = self._table.copy()
        table[:, 0] = places
        return Chunks, ([self._sources[file] for file in files], table)


class ChunkBuilder:
    """Gathers rows into chunks while the input is scanned; forgets chunks without a pending row."""

    def __init__(self, done: IdSet) -> None:
        self.digests = bytearray()
        """Those of all ids, in order."""
        self.pending_count = 0
        self._done = done
        self._sources: list[SourceFile] = []
        self._table = array("q")
        self._first: tuple[int, int, int] | None = None  # start, record and row number of the open chunk
        self._end = 0
        self._max_rows = MAX_CHUNK_ROWS

    @property
    def row_count(self) -> int:
        return len(self.digests) // DIGEST_BYTES

    def open_file(self, source: SourceFile) -> None:
        self.close()
        self._sources.append(source)
        self._max_rows = MAX_CHUNK_ROWS
        if source.row_bytes:
            self._max_rows = max(1, min(MAX_CHUNK_ROWS, MAX_CHUNK_BYTES // source.row_bytes))

    def add(self, row_id: str, start: int, end: int, number: int) -> None:
        """One row of the file opened last."""
        row = self.row_count
        if self._first is None:
            self._first = (start, number, row)
        self.digests += id_digest(row_id)
        self._end = end
        first_start, _, first_row = self._first
        if row + 1 - first_row >= self._max_rows or end - first_start >= MAX_CHUNK_BYTES:
            self.close()

    def close(self) -> None:
        """End the open chunk."""
        if self._first is None:
            return
        start, number, first_row = self._first
        self._first = None
        rows = self.row_count - first_row
        pending = (1 << rows) - 1
        if len(self._done):
            digests = bytes(self.digests[first_row * DIGEST_BYTES :])
            bits = np.packbits(~self._done.contains_digests(digests), bitorder="little")
            pending = int.from_bytes(bits.tobytes(), "little")
        if pending:
            self.pending_count += pending.bit_count()
            signed = pending - (1 << 64) if pending >> 63 else pending
            self._table.extend((len(self._sources) - 1, start, self._end, number, first_row, rows, signed))

    def chunks(self) -> Chunks:
        self.close()
        return Chunks(self._sources, np.frombuffer(self._table, dtype=np.int64).reshape(-1, _FIELDS))


def make_blocks(chunks: Chunks, rows_per_block: int = ROWS_PER_BLOCK) -> list[Chunks]:
    """Consecutive chunks of about that many pending rows together, and at most about MAX_BLOCK_BYTES."""
    blocks = []
    first = rows = size_bytes = 0
    for index, chunk in enumerate(chunks):
        full = rows + chunk.pending_rows > rows_per_block or size_bytes + chunk.size_bytes > MAX_BLOCK_BYTES
        if index > first and full:
            blocks.append(chunks[first:index])
            first, rows, size_bytes = index, 0, 0
        rows += chunk.pending_rows
        size_bytes += chunk.size_bytes
    if first < len(chunks):
        blocks.append(chunks[first:])
    return blocks

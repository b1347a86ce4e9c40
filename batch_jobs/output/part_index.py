"""Which part, and which of its rows, holds an id.

Role: find committed rows by id. Owns: the index in memory, some 25 bytes a row whatever the ids are.
Must not know: what is done with the rows.

An id is known by its digest of 128 bits, so two ids that look alike (composed and decomposed letters, say) stay two.
Digests are kept sorted; a lookup is a binary search for a whole slice of ids at once. An id that two parts hold (on an
object store a late part of a dead run can land) is found in the first part by name, always the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from batch_jobs.errors import JobFailed
from batch_jobs.input.id_set import id_digest
from batch_jobs.output.committed import part_names, part_rows
from batch_jobs.storage import Storage


class Places(NamedTuple):
    """Where the rows of some ids are, one element an id."""

    parts: npt.NDArray[np.int64]
    """Indexes into `PartIndex.names`."""
    rows: npt.NDArray[np.int64]
    failed: npt.NDArray[np.bool_]


class PartIndex:
    """Built once, when nothing is committed any more."""

    def __init__(self, storage: Storage) -> None:
        self.names = part_names(storage)
        digests, failed, counts = bytearray(), bytearray(), [0]
        for rows in storage.map(lambda name: part_rows(storage, name), self.names):
            digests += b"".join(id_digest(row.id) for row in rows)
            failed += bytes(row.error is not None for row in rows)
            counts.append(len(rows))
        self._starts = np.cumsum(counts)
        self._failed = np.frombuffer(failed, dtype=np.bool_)
        halves = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
        self._order = np.argsort(halves[:, 0], kind="stable")
        self._high = halves[self._order, 0]
        self._low = halves[self._order, 1]

    def __len__(self) -> int:
        return len(self._order)

    def find(self, ids: Sequence[str]) -> Places:
        """Raises JobFailed for an id that no part holds."""
        wanted = np.frombuffer(b"".join(map(id_digest, ids)), dtype=np.uint64).reshape(-1, 2)
        high, low = wanted[:, 0], wanted[:, 1]
        at = np.searchsorted(self._high, high)
        while True:
            missing = at >= len(self)
            at[missing] = 0
            missing |= self._high[at] != high if len(self) else True
            if missing.any():
                raise JobFailed(f"row {ids[int(missing.argmax())]!r} is in no part of the output: run the job again")
            other = self._low[at] != low  # the first half of two digests is the same: once in many millions of jobs
            if not other.any():
                break
            at[other] += 1
        places = self._order[at]
        parts = np.searchsorted(self._starts, places, side="right") - 1
        return Places(parts, places - self._starts[parts], self._failed[places])

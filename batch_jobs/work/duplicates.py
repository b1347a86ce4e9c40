"""Identical deterministic requests are computed once.

Role: remember which answers exist or are on their way. Owns: leaders, followers, and the index of committed answers.
Must not know: who computes, what an answer is.

The first row with a key is the leader and runs; rows with the same key that come while it runs follow it, and later
ones find where its answer was committed.

Memory: the followers (bounded by the ledger, which stops taking rows in) and the leaders under way; the index of
committed answers lives in a private SQLite file that vanishes with the process, so it may grow with the job.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from batch_jobs.input.prepared import Prepared
from batch_jobs.work.messages import Copy

_CACHE_KIB = 16 << 10


class Duplicates:
    """Used by one ledger."""

    def __init__(self) -> None:
        # "": a temporary database on disk, deleted on close and invisible to others. Threads never share it.
        self._index = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._index.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._index.execute(
            "CREATE TABLE answers (key BLOB PRIMARY KEY, part TEXT, row INTEGER, id TEXT) WITHOUT ROWID"
        )
        self._leaders: dict[bytes, list[Prepared]] = {}
        self._keys: dict[int, bytes] = {}

    @property
    def parked(self) -> int:
        """Rows that wait for their leader."""
        return sum(map(len, self._leaders.values())) if self._leaders else 0

    def sort(self, rows: Iterable[Prepared]) -> tuple[list[Prepared], list[tuple[Prepared, Copy]]]:
        """(rows to compute, rows whose answer is committed already); the rest is kept here as followers."""
        compute, copies = [], []
        for row in rows:
            if row.key is None:
                compute.append(row)
            elif (followers := self._leaders.get(row.key)) is not None:
                followers.append(row)
            elif (found := self._find(row.key)) is not None:
                copies.append((row, found))
            else:
                self._leaders[row.key] = []
                self._keys[row.number] = row.key
                compute.append(row)
        return compute, copies

    def _find(self, key: bytes) -> Copy | None:
        found = self._index.execute("SELECT part, row, id FROM answers WHERE key = ?", (key,)).fetchone()
        return Copy(*found) if found else None

    def committed(self, part: str, rows: Sequence[tuple[int, str]]) -> list[tuple[Prepared, Copy]]:
        """Note a part's rows, (number, id) in the part's order. Returns followers that can be answered now."""
        free: list[tuple[Prepared, Copy]] = []
        answers = []
        for index, (number, row_id) in enumerate(rows):
            key = self._keys.pop(number, None)
            if key is not None:
                copy = Copy(part, index, row_id)
                answers.append((key, *copy))
                free.extend((follower, copy) for follower in self._leaders.pop(key))
        if answers:
            self._index.execute("BEGIN")
            self._index.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", answers)
            self._index.execute("COMMIT")
        return free

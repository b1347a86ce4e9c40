"""A set of row ids in 16 bytes each.

Role: remember which rows are committed, and find ids that occur twice, for millions of rows. Owns: how an id is hashed.
Must not know: where ids come from.

Ids are kept as 128-bit BLAKE2b digests in sorted arrays. Two different ids of 20 million have the same digest with a
probability of 10^-24; on that is relied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

DIGEST_BYTES = 16


def id_digest(row_id: str) -> bytes:
    # Lone surrogates cannot be encoded, but a JSON file can spell them.
    return hashlib.blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def _halves(digests: bytes | bytearray | memoryview) -> np.ndarray:
    """One row of (high, low) per digest; a view."""
    return np.frombuffer(digests, dtype="<u8").reshape(-1, 2)


class IdSet:
    """Immutable. Membership is asked in bulk."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        digests = bytearray()
        for row_id in ids:
            digests += id_digest(row_id)
        halves = _halves(digests)
        order = np.lexsort((halves[:, 1], halves[:, 0]))
        high, low = halves[order, 0], halves[order, 1]
        new = np.ones(len(high), dtype=bool)
        new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        self._high, self._low = (high, low) if new.all() else (high[new], low[new])

    def __len__(self) -> int:
        return len(self._high)

    def __contains__(self, row_id: str) -> bool:
        return bool(self.contains_many([row_id])[0])

    def contains_many(self, ids: Sequence[str]) -> np.ndarray:
        """A bool per id."""
        return self.contains_digests(b"".join(map(id_digest, ids)))

    def contains_digests(self, digests: bytes | bytearray | memoryview) -> np.ndarray:
        """A bool per digest of DIGEST_BYTES."""
        halves = _halves(digests)
        found = np.zeros(len(halves), dtype=bool)
        if not len(self):
            return found
        at = np.searchsorted(self._high, halves[:, 0])
        while True:  # once, unless two digests agree in their high half
            inside = np.minimum(at, len(self) - 1)
            same = (at < len(self)) & (self._high[inside] == halves[:, 0])
            found |= same & (self._low[inside] == halves[:, 1])
            open_ = same & ~found
            if not open_.any():
                return found
            at = at + open_


def repeated(digests: bytearray) -> tuple[np.ndarray, int]:
    """Where digests that occur more than once occur first, in order, and how many occurrences are too many."""
    halves = _halves(digests)
    high = np.sort(halves[:, 0])
    twice = np.unique(high[1:][high[1:] == high[:-1]])
    if not len(twice):
        return twice.astype(np.int64), 0
    places = np.flatnonzero(np.isin(halves[:, 0], twice))
    order = places[np.lexsort((places, halves[places, 1], halves[places, 0]))]
    equal = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    first = equal & ~np.concatenate(([False], equal[:-1]))
    return np.sort(order[:-1][first]), int(equal.sum())

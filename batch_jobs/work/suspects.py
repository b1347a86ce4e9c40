"""Which row kills engines? Found by running suspects in ever smaller company.

Role: decide, after each death of an engine, how the rows that it held are tried again. Owns: the deaths of each row.
Must not know: engines, Ray, what is inside rows.

One death proves nothing (a lost node, a full host): its rows go back among the others. Rows that were there at a second
death are suspects: they run apart from everybody else, an eighth of the last company at a time, so a row that kills
its engine is alone after about log8(rows in an engine) more deaths, while the innocent finish on the way. A row that
was alone at its third death is the one, and becomes an error row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from batch_jobs.input.prepared import Prepared

SUSPECT_DEATHS = 2
CONVICTION_DEATHS = 3
SPLIT = 8


@dataclass
class Verdict:
    """What becomes of the rows of an engine that died."""

    retry: list[Prepared] = field(default_factory=list)
    convicted: list[Prepared] = field(default_factory=list)


@dataclass
class Suspects:
    """Rows that run apart, and the record of all rows that have seen a death."""

    _deaths: dict[int, int] = field(default_factory=dict)
    _groups: deque[list[Prepared]] = field(default_factory=deque)

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def deaths(self, number: int) -> int:
        return self._deaths.get(number, 0)

    def engine_died(self, rows: Iterable[Prepared]) -> Verdict:
        """Record one death of an engine that held exactly `rows`."""
        rows = list(rows)
        verdict = Verdict()
        suspects = []
        for row in rows:
            deaths = self._deaths[row.number] = self._deaths.get(row.number, 0) + 1
            if deaths >= CONVICTION_DEATHS and len(rows) == 1:
                verdict.convicted.append(row)
            elif deaths >= SUSPECT_DEATHS:
                suspects.append(row)
            else:
                verdict.retry.append(row)
        size = max(1, len(rows) // SPLIT)
        # To the front: a group that has just been halved is closest to its answer.
        self._groups.extendleft(suspects[start : start + size] for start in range(0, len(suspects), size))
        return verdict

    def next_group(self) -> list[Prepared]:
        """Rows to run together, in an engine that holds no other row."""
        return self._groups.popleft() if self._groups else []

    def committed(self, number: int) -> None:
        self._deaths.pop(number, None)

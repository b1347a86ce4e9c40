"""Rows that one engine should run together.

Role: a unit of the plan and how much of it was given out. Owns: its rows until they are taken. Must not know: how units
are found or chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from batch_jobs.input.prepared import CHARS_PER_TOKEN, Prepared
from batch_jobs.ordering.density import density_class


class Unit:
    """`ages` says in which plan each row was seen first; `compute` and `memory` are the rows' work (density.py)."""

    __slots__ = ("ages", "at", "compute", "level", "memory", "rows", "shared_chars")

    def __init__(
        self,
        rows: Sequence[Prepared],
        ages: Sequence[int],
        compute: Sequence[float],
        memory: Sequence[float],
        shared_chars: int,
    ) -> None:
        self.rows = rows
        self.ages = ages
        self.compute = compute
        self.memory = memory
        self.shared_chars = shared_chars
        """0: a run of rows that share nothing; no engine need own it."""
        self.level = density_class(sum(compute), sum(memory))
        self.at = 0
        """Rows before this one were taken."""

    def __len__(self) -> int:
        return len(self.rows) - self.at

    def take(self, count: int) -> Sequence[Prepared]:
        """The next rows, at most `count`."""
        start = self.at
        self.at = min(len(self.rows), start + count)
        return self.rows[start : self.at]

    def part(self, places: Iterable[int], shared_chars: int) -> Unit:
        """A unit of the rows at these places, in this order."""
        places = list(places)
        rows, ages, compute, memory = self.rows, self.ages, self.compute, self.memory
        return Unit(
            [rows[place] for place in places],
            [ages[place] for place in places],
            [compute[place] for place in places],
            [memory[place] for place in places],
            shared_chars,
        )

    def halves(self) -> tuple[Unit | None, Unit]:
        """What is left in two; the second is the larger one where they differ."""
        middle = self.at + len(self) // 2
        first = self.part(range(self.at, middle), self.shared_chars) if middle > self.at else None
        return first, self.part(range(middle, len(self.rows)), self.shared_chars)

    def longest_first(self) -> list[Unit]:
        """What is left, by expected output; in single rows where keeping them together is not worth it.

        Together they save the shared prompt tokens for each row. Apart, each starts exactly when its output's length
        says, which can bring the end forward by the spread of the lengths.
        """
        places = sorted(range(self.at, len(self.rows)), key=lambda place: -self.rows[place].output_tokens)
        spread = self.rows[places[0]].output_tokens - self.rows[places[-1]].output_tokens
        if self.shared_chars / CHARS_PER_TOKEN >= spread:
            return [self.part(places, self.shared_chars)]
        return [self.part([place], 0) for place in places]

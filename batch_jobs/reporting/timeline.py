"""How much was done when, in a bounded number of buckets.

Role: throughput over a run of any length. Must not know: pools, what a row is. When a moment lies beyond the last
bucket, buckets are merged in pairs and become twice as wide.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MAX_BUCKETS = 240
FIRST_WIDTH_S = 0.5


@dataclass
class Timeline:
    """Sums per bucket; the lists have equal lengths and end with the last bucket that got anything."""

    width_s: float = FIRST_WIDTH_S
    rows: list[int] = field(default_factory=list)
    input_tokens: list[int] = field(default_factory=list)
    output_tokens: list[int] = field(default_factory=list)

    def add(self, at_s: float, rows: int, input_tokens: int, output_tokens: int) -> None:
        self.fit(at_s)
        index = max(int(at_s / self.width_s), 0)
        for values, amount in zip(self._all(), (rows, input_tokens, output_tokens), strict=True):
            values.extend([0] * (index + 1 - len(values)))
            values[index] += amount

    def fit(self, at_s: float) -> None:
        """Widen the buckets until `at_s` has one."""
        while at_s >= self.width_s * MAX_BUCKETS:
            self.widen()

    def widen(self) -> None:
        self.width_s *= 2
        for values in self._all():
            values[:] = [sum(values[i : i + 2]) for i in range(0, len(values), 2)]

    def _all(self) -> tuple[list[int], list[int], list[int]]:
        return self.rows, self.input_tokens, self.output_tokens

    def as_json(self) -> dict[str, Any]:
        return {
            "width_s": self.width_s,
            "rows": list(self.rows),
            "input_tokens": list(self.input_tokens),
            "output_tokens": list(self.output_tokens),
        }

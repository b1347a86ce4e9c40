"""How long answers are, compared with what was expected.

Role: one factor for a whole job. Owns: the sums. Must not know: rows, windows.

`max_tokens` is only an upper bound, so the outputs of most jobs are overestimated alike. The factor is actual over
expected tokens of the rows that have finished. Short answers finish first, so it is low in the beginning; the prior, a
few rows that were exactly as long as expected, keeps it from jumping on the first of them.
"""

from __future__ import annotations

PRIOR_ROWS = 16
LOWEST = 0.01


class OutputScale:
    def __init__(self) -> None:
        self._rows = 0
        self._expected = 0.0
        self._actual = 0.0

    def observe(self, output_estimated: float, output_actual: float) -> None:
        """A row has finished. Rows of which no output was expected say nothing."""
        if output_estimated > 0:
            self._rows += 1
            self._expected += output_estimated
            self._actual += output_actual

    @property
    def factor(self) -> float:
        """What to multiply expected outputs with."""
        if not self._rows:
            return 1.0
        prior = PRIOR_ROWS * self._expected / self._rows
        return max(LOWEST, (self._actual + prior) / (self._expected + prior))

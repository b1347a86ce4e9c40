"""How long a replica takes to come, as measured: by deployment, and by the rung of the cold-start ladder it came by.

Expected is the third quartile of the last 16 starts by the rung that was taken last: a start that is a little slower
than usual must not surprise the scaler, and one outlier must not rule it.

Owns: what was measured. Must not know: how replicas start, who decides on them.
"""

from __future__ import annotations

import math
from collections import deque

REMEMBERED = 16
QUANTILE = 0.75


class StartTimes:
    """Seconds from the start of a replica until it takes requests."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, deque[float]]] = {}
        self._latest: dict[str, str] = {}

    def learn(self, deployment: str, rung: str, seconds: float) -> None:
        rungs = self._seen.setdefault(deployment, {})
        rungs.setdefault(rung, deque(maxlen=REMEMBERED)).append(seconds)
        self._latest[deployment] = rung

    def expected_s(self, deployment: str) -> float:
        """Of the next replica; 0.0 while none has come yet."""
        return self.by_rung(deployment).get(self._latest.get(deployment, ""), 0.0)

    def by_rung(self, deployment: str) -> dict[str, float]:
        """Expected seconds for every rung that was seen."""
        return {rung: _quantile(seen) for rung, seen in self._seen.get(deployment, {}).items()}


def _quantile(seen: deque[float]) -> float:
    return sorted(seen)[math.ceil(QUANTILE * len(seen)) - 1]

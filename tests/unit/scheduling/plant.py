"""A deployment as a fluid: service flows in, replicas work it off, the scaler says how many there are.

Role: close the loop around a scaler in tests of its behaviour over time. Must not know: the scaler's formulas.
"""

from __future__ import annotations

import itertools
import math
import random

from cluster.scheduling import BacklogScaler, Demand, Fleet, ScalingBounds
from cluster.scheduling.rates import RateMeter

STEP_S = 0.5
RATE = 100.0
"""Service per second of a busy replica."""
REQUEST = 25.0
"""Service of a request."""
PIECES = 10
"""In which the service of a step arrives."""


class Plant:
    """Load is given in replicas: 2.5 keeps two and a half of them busy."""

    def __init__(self, start_s: float, max_replicas: int = 100, idle_timeout_s: float = 60.0, seed: int = 0) -> None:
        self.bounds = ScalingBounds(0, max_replicas, 8, 5.0, idle_timeout_s)
        self.scaler = BacklogScaler(self.bounds)
        self.start_s = start_s
        self.now_s = 0.0
        self.backlog = 0.0
        self.ready_at_s: list[float] = []
        self.history: list[int] = []
        self.reasons: list[str] = []
        self._arrivals = RateMeter(10.0)
        self._rng = random.Random(seed)

    def run(self, seconds: float, load: float, noise: float = 0.0) -> None:
        for _ in range(round(seconds / STEP_S)):
            self._step(load * RATE * (1 + self._rng.uniform(-noise, noise)))

    def changes(self, since: int = 0) -> int:
        """How often the number of replicas changed from step `since` on."""
        shown = self.history[since:]
        return sum(a != b for a, b in itertools.pairwise(shown))

    def _step(self, per_s: float) -> None:
        self.now_s += STEP_S
        ready = sum(at_s <= self.now_s for at_s in self.ready_at_s)
        for piece in range(1, PIECES + 1) if per_s else ():
            self._arrivals.add(per_s * STEP_S / PIECES, self.now_s - STEP_S + piece * STEP_S / PIECES)
        capacity = ready * RATE * STEP_S
        served = min(capacity, self.backlog + per_s * STEP_S)
        self.backlog += per_s * STEP_S - served
        running = math.ceil(ready * self.bounds.slots_per_replica * served / capacity) if capacity else 0
        waiting = math.ceil(self.backlog / REQUEST - 1e-9)
        arriving = self._arrivals.rate(self.now_s)
        demand = Demand(waiting, running, self.backlog, arriving, RATE, saturated=True)
        coming = tuple(at_s - self.now_s for at_s in self.ready_at_s if at_s > self.now_s)
        fleet = Fleet(ready, coming, self.start_s)
        decision = self.scaler.decide(demand, len(self.ready_at_s), self.now_s, fleet)
        self.reasons.append(decision.reason)
        self._aim_at(decision.replicas)

    def _aim_at(self, replicas: int) -> None:
        self.ready_at_s.sort()
        del self.ready_at_s[replicas:]  # those that are still starting go first
        self.ready_at_s += [self.now_s + self.start_s] * (replicas - len(self.ready_at_s))
        self.history.append(replicas)

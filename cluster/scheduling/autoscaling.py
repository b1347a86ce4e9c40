"""How many replicas a deployment should have.

Formula: `desired = ceil((arrivals + backlog / wait_target) / replica_rate)`, in service (weighted tokens) and
seconds: enough replicas to keep up with what arrives and to clear what waits within the wait target. While a
replica's rate is unknown, slots stand in for it: `ceil((waiting + running) / slots per replica)`. Never fewer than
the running requests need. Up at once; down only after `idle_timeout_s` during which fewer would have done (the
largest wish in that window counts), so a pause between two bursts does not cost a cold start and replicas do not
oscillate.

Owns: the window of past wishes. Must not know: Ray Serve, how replicas start.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from cluster.scheduling.demand import Demand


@dataclass(frozen=True, slots=True)
class ScalingBounds:
    """Limits and targets of one deployment."""

    min_replicas: int
    max_replicas: int
    slots_per_replica: int
    wait_target_s: float
    idle_timeout_s: float


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """Replicas wanted, and why, in words for `tribes status`."""

    replicas: int
    reason: str


class BacklogScaler:
    """Backlog- and rate-driven scaling with a hold-down window."""

    def __init__(self, bounds: ScalingBounds) -> None:
        self.bounds = bounds
        self._wishes: deque[tuple[float, int]] = deque()

    def decide(self, demand: Demand, current: int, now_s: float) -> ScalingDecision:
        """`current` counts replicas that run or start."""
        wish, reason = self._wish(demand)
        # The window holds a decreasing sequence, so its head is the largest wish of the last idle_timeout_s.
        while self._wishes and self._wishes[-1][1] <= wish:
            self._wishes.pop()
        self._wishes.append((now_s, wish))
        while self._wishes[0][0] < now_s - self.bounds.idle_timeout_s:
            self._wishes.popleft()
        if wish < current:
            held = min(current, self._wishes[0][1])
            if held > wish:
                reason = f"{reason}; kept at {held}: needed within the last {self.bounds.idle_timeout_s:g} s"
            wish = held
        bounded = min(self.bounds.max_replicas, max(self.bounds.min_replicas, wish))
        if bounded != wish:
            reason = f"{reason}; bounded to {bounded} by min {self.bounds.min_replicas}, max {self.bounds.max_replicas}"
        return ScalingDecision(bounded, reason)

    def _wish(self, demand: Demand) -> tuple[int, str]:
        bounds = self.bounds
        if not demand.waiting and not demand.running:
            # What lends itself to a class that has no home must be there, but not grow for work that can wait.
            if demand.guests:
                return 1, f"{demand.guests} waiting that have no deployment of their own"
            return 0, "idle"
        for_running = math.ceil(demand.running / bounds.slots_per_replica)
        if not demand.waiting:
            return for_running, f"{demand.running} running, none waiting"
        if demand.replica_service_per_s <= 0:
            wish = math.ceil((demand.waiting + demand.running) / bounds.slots_per_replica)
            return (
                wish,
                f"{demand.waiting} waiting and {demand.running} running over {bounds.slots_per_replica} slots each",
            )
        needed_per_s = demand.arrival_service_per_s + demand.backlog_service / bounds.wait_target_s
        # A remembered rate fades towards zero: bound the quotient before it becomes an integer.
        wish = max(1, for_running, math.ceil(min(needed_per_s / demand.replica_service_per_s, bounds.max_replicas)))
        return wish, (
            f"{demand.waiting} waiting: {demand.backlog_service:.0f} tokens to clear in {bounds.wait_target_s:g} s and "
            f"{demand.arrival_service_per_s:.0f}/s arriving, at {demand.replica_service_per_s:.0f}/s a replica"
        )

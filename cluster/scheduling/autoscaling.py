"""How many replicas a deployment should have. The same for online and semi-online work: the wait target is the part of
the time to the first token that more replicas can do something about.

Of these the largest, where R is what a busy replica does (service/s), `lambda` what arrives, T the wait target and S
the time that a new replica takes to come (measured):

    running       ceil(running / slots)                         what runs keeps its replicas
    arrivals      ceil((lambda / LOAD_UP + B / max(T, S)) / R)   B = backlog + lambda * S - R * (work of all within S)
    prefill       ceil(seconds of prefill ahead in engines / T)   smoothed: the first token waits there too

B is what will still wait when a replica that is ordered now has come, with those that are coming already: what they
will have cleared by then orders nothing. It is 0 while nobody waits. It is cleared within T; or within S if that is
longer: replicas that take longer to come than they have work would make a short burst cost many times its work. So a
step of load never orders more than about twice what it needs in the long run.

Up at once. Down only to what was needed at any time in the last H seconds, and no further than to
`lambda / (LOAD_DOWN * R)`, but while nobody waits to no more than `running / (PACKED * slots)`: after a burst the slots
know sooner than a mean that it is over. H is the start time: holding a replica for as long as it takes to come back
costs at most twice the least possible (ski rental). It is never above `idle_timeout_s`, which also holds the last
replica, and all of them while no start was measured. Each removal that was regretted soon doubles H for one replica
more, or a fifth more: so noise orders nothing again and again, and what a burst has brought still goes.

While R was only seen under light load it may be far too low: then slots stand in for it, `ceil((waiting + running) /
slots)`, or `ceil((lambda + backlog / T) / R)` if that is less.

Owns: the window of past needs. Must not know: Ray Serve, how replicas start.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from cluster.scheduling.demand import Demand

LOAD_UP = 1.0
LOAD_DOWN = 0.9
PACKED = 0.75
"""While nobody waits, no more replicas are needed than what runs would fill to so much."""
LEAST_HOLD_S = 5.0
CALM_SHARE = 0.2
PREFILL_TAU_S = 10.0
"""Longer than a long prompt takes: one of them is no reason for another replica."""


@dataclass(frozen=True, slots=True)
class ScalingBounds:
    """Limits and targets of one deployment."""

    min_replicas: int
    max_replicas: int
    slots_per_replica: int
    wait_target_s: float
    idle_timeout_s: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """The replicas that there are. Those that were ordered and have not been heard of count for nothing yet."""

    ready: int
    coming_in_s: tuple[float, ...] = ()
    """Of each that is starting: seconds until it takes requests."""
    start_s: float = 0.0
    """From the order of another one until it takes requests; 0.0 while unknown."""

    def replica_seconds_within(self, horizon_s: float) -> float:
        return self.ready * horizon_s + sum(max(0.0, horizon_s - in_s) for in_s in self.coming_in_s)


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """Replicas wanted, and why, in words for `tribes status`."""

    replicas: int
    reason: str
    needed: int
    """Without what is kept because it was needed a moment ago, or bounded by `min_replicas`."""


Need = tuple[int, str]


class BacklogScaler:
    """Backlog, rate and start time in, replicas out."""

    def __init__(self, bounds: ScalingBounds) -> None:
        self.bounds = bounds
        self._needs: deque[tuple[float, int]] = deque()
        self._prefill_s = 0.0
        self._decided_at_s: float | None = None
        self._removed_at_s = -math.inf
        self._regrets = 0

    def decide(self, demand: Demand, current: int, now_s: float, fleet: Fleet | None = None) -> ScalingDecision:
        """`current` counts all replicas that were ordered; without `fleet` they all are ready."""
        fleet = fleet or Fleet(current)
        if self._decided_at_s is None:
            self._note(current, now_s)  # nothing is known yet of what they were needed for
        self._smooth_prefill(demand.prefill_s, now_s)
        needed, reason = self._needed(demand, current, fleet)
        self._note(needed, now_s)
        replicas = needed
        if needed < current:
            kept, kept_s = self._kept(fleet, now_s)
            replicas = min(current, kept)
            if replicas > needed:
                reason = f"{reason}; kept at {replicas}: needed within the last {kept_s:.3g} s"
        bounded = min(self.bounds.max_replicas, max(self.bounds.min_replicas, replicas))
        if bounded != replicas:
            reason = f"{reason}; bounded to {bounded} by min {self.bounds.min_replicas}, max {self.bounds.max_replicas}"
        self._learn(bounded, current, now_s, self._calm_s(fleet))
        return ScalingDecision(bounded, reason, min(needed, self.bounds.max_replicas))

    # --- what is needed now ---------------------------------------------------------------------------------------

    def _needed(self, demand: Demand, current: int, fleet: Fleet) -> Need:
        if not demand.waiting and not demand.running:
            # What lends itself to a class that has no home must be there, but not grow for work that can wait.
            if demand.guests:
                return 1, f"{demand.guests} waiting that have no deployment of their own"
            return 0, "idle"
        return max(self._needs_of(demand, current, fleet), key=lambda need: need[0])

    def _needs_of(self, demand: Demand, current: int, fleet: Fleet) -> Iterator[Need]:
        bounds, waiting, running = self.bounds, demand.waiting, demand.running
        slots = bounds.slots_per_replica
        yield max(1, math.ceil(running / slots)), f"{running} running, {waiting or 'none'} waiting"
        ahead = self._quotient(self._prefill_s, bounds.wait_target_s)
        yield ahead, f"{self._prefill_s:.2g} s of prefill ahead in engines, target {bounds.wait_target_s:g} s"
        if demand.saturated:
            yield self._for_arrivals(demand, current, fleet)
        elif waiting:
            yield self._for_slots(demand)

    def _for_slots(self, demand: Demand) -> Need:
        """More would have slots that nobody takes; fewer do if even the rate under light load is enough."""
        slots, rate = self.bounds.slots_per_replica, demand.replica_service_per_s
        wish = math.ceil((demand.waiting + demand.running) / slots)
        reason = f"{demand.waiting} waiting and {demand.running} running over {slots} slots each"
        per_s = demand.arrival_service_per_s + demand.backlog_service / self.bounds.wait_target_s
        if rate > 0 and self._quotient(per_s, rate) < wish:
            return self._quotient(per_s, rate), f"{reason}, at {rate:.0f} tokens/s a replica or more"
        return wish, reason

    def _for_arrivals(self, demand: Demand, current: int, fleet: Fleet) -> Need:
        arriving, rate, start_s = demand.arrival_service_per_s, demand.replica_service_per_s, fleet.start_s
        reason = f"{arriving:.0f} tokens/s arriving"
        clear_s, left = max(self.bounds.wait_target_s, start_s), 0.0
        if demand.waiting:
            done = rate * fleet.replica_seconds_within(start_s)
            left = max(0.0, demand.backlog_service + arriving * start_s - done)
            then = f", {left:.0f} when another replica could be there in {start_s:.3g} s" if start_s else ""
            reason += f" and {demand.backlog_service:.0f} waiting{then}, to clear in {clear_s:.3g} s"
        keep = min(current, self._quotient(arriving, LOAD_DOWN * rate))
        wish = max(keep, self._quotient(arriving / LOAD_UP + left / clear_s, rate))
        if not demand.waiting:
            # What arrives is a mean over some seconds: after a burst the slots know sooner that it is over.
            wish = min(wish, self._quotient(demand.running, PACKED * self.bounds.slots_per_replica))
        return wish, f"{reason}, at {rate:.0f}/s a replica"

    def _quotient(self, amount: float, per_replica: float) -> int:
        """Bounded before it becomes an integer: a remembered rate may have faded to nothing."""
        if amount <= 0:
            return 0
        if per_replica <= 0:
            return self.bounds.max_replicas
        return math.ceil(min(amount / per_replica, self.bounds.max_replicas))

    def _smooth_prefill(self, prefill_s: float, now_s: float) -> None:
        elapsed_s = 0.0 if self._decided_at_s is None else max(0.0, now_s - self._decided_at_s)
        self._decided_at_s = now_s
        self._prefill_s += (prefill_s - self._prefill_s) * -math.expm1(-elapsed_s / PREFILL_TAU_S)

    # --- what is kept ---------------------------------------------------------------------------------------------

    def _hold_s(self, fleet: Fleet) -> float:
        if fleet.start_s <= 0:
            return self.bounds.idle_timeout_s
        return min(self.bounds.idle_timeout_s, max(LEAST_HOLD_S, fleet.start_s))

    def _calm_s(self, fleet: Fleet) -> float:
        return min(self.bounds.idle_timeout_s, self._hold_s(fleet) * 2.0**self._regrets)

    def _note(self, needed: int, now_s: float) -> None:
        """Keep a decreasing sequence: in any window up to now its first entry is the largest need."""
        while self._needs and self._needs[-1][1] <= needed:
            self._needs.pop()
        self._needs.append((now_s, needed))
        while self._needs[0][0] < now_s - self.bounds.idle_timeout_s:
            self._needs.popleft()

    def _kept(self, fleet: Fleet, now_s: float) -> tuple[int, float]:
        """How many are not given up yet, and for how long that has been so."""
        hold_s, calm_s = self._hold_s(fleet), self._calm_s(fleet)
        held = self._most_needed(now_s - hold_s)
        calm = min(self._most_needed(now_s - calm_s), held + max(1, int(CALM_SHARE * held)))
        if not calm and self._needs[0][1]:
            return 1, self.bounds.idle_timeout_s
        return calm, hold_s if calm == held else calm_s

    def _most_needed(self, since_s: float) -> int:
        return next(needed for at_s, needed in self._needs if at_s >= since_s)

    def _learn(self, replicas: int, current: int, now_s: float, calm_s: float) -> None:
        if replicas < current:
            self._removed_at_s = now_s
        elif replicas > current:
            since_s = now_s - self._removed_at_s
            if since_s <= 2 * calm_s and calm_s < self.bounds.idle_timeout_s:
                self._regrets += 1
            elif since_s > self.bounds.idle_timeout_s:
                self._regrets = max(0, self._regrets - 1)

"""The replicas of one deployment over time: starting on the best rung that is free, ready, draining, gone.

Owns: their states and what they cost. Must not know: how many there should be, the queue, requests.
"""

from __future__ import annotations

import math
from enum import Enum

from cluster.config import DeploymentConfig
from cluster.simulation.engine import Engine
from cluster.simulation.replica import ReplicaModel
from cluster.simulation.settings import EngineSettings, Rung


class State(Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"


class SimReplica:
    """One replica's life."""

    __slots__ = (
        "ended_s",
        "expected_s",
        "leases",
        "model",
        "number",
        "pool",
        "ready_s",
        "replica_id",
        "rung",
        "started_s",
        "state",
    )

    def __init__(self, pool: ReplicaPool, number: int, engine: Engine, rung: Rung, now_s: float) -> None:
        self.pool = pool
        self.number = number
        self.replica_id = f"{pool.name}-{number}"
        self.model = ReplicaModel(engine)
        self.rung = rung
        self.state = State.STARTING
        self.started_s = now_s
        self.ready_s = now_s + rung.seconds
        self.ended_s = math.inf
        self.expected_s = math.inf
        """When the clock was last told that it has news."""
        self.leases: dict[int, tuple[str, float]] = {}
        """Lease and when it was granted, by request number."""


class ReplicaPool:
    """Of one deployment."""

    def __init__(
        self, name: str, config: DeploymentConfig, engine: Engine, settings: EngineSettings, usd_per_hour: float
    ) -> None:
        self.name = name
        self.config = config
        self.engine = engine
        self.usd_per_hour = usd_per_hour
        self.mean_time_to_failure_s = settings.mean_time_to_failure_s
        self.alive: dict[str, SimReplica] = {}
        self.gone: list[SimReplica] = []
        self.starts: dict[str, int] = {}
        self.failures = 0
        self.timeline: list[tuple[float, int, int]] = []
        """(when, ready, starting), at each change."""
        self._rungs = settings.cold_starts

    @property
    def current(self) -> int:
        """Replicas that run or start, as the autoscaler counts them."""
        return sum(1 for r in self.alive.values() if r.state is not State.DRAINING)

    def start(self, now_s: float, *, ready: bool = False) -> SimReplica:
        """`ready`: it was there before the simulation began."""
        rung = Rung(name="there", seconds=0) if ready else self._free_rung()
        replica = SimReplica(self, len(self.alive) + len(self.gone), self.engine, rung, now_s)
        self.alive[replica.replica_id] = replica
        if not ready:
            self.starts[rung.name] = self.starts.get(rung.name, 0) + 1
        self.changed(now_s)
        return replica

    def to_stop(self, count: int) -> list[SimReplica]:
        """Those that start, the newest first, then those with the least to do."""
        starting = [r for r in self.alive.values() if r.state is State.STARTING]
        ready = [r for r in self.alive.values() if r.state is State.READY]
        starting.sort(key=lambda r: -r.number)
        ready.sort(key=lambda r: (len(r.leases), -r.number))
        return (starting + ready)[:count]

    def end(self, replica: SimReplica, now_s: float) -> None:
        replica.state = State.GONE
        replica.ended_s = now_s
        del self.alive[replica.replica_id]
        self.gone.append(replica)
        self.changed(now_s)

    def changed(self, now_s: float) -> None:
        states = [r.state for r in self.alive.values()]
        self.timeline.append((now_s, states.count(State.READY), states.count(State.STARTING)))

    def replicas(self) -> list[SimReplica]:
        return [*self.gone, *self.alive.values()]

    def replica_seconds(self, end_s: float) -> float:
        """From each one's start, cold start included: it is paid for."""
        return sum(min(r.ended_s, end_s) - r.started_s for r in self.replicas())

    def _free_rung(self) -> Rung:
        used: dict[str, int] = {}
        for replica in self.alive.values():
            used[replica.rung.name] = used.get(replica.rung.name, 0) + 1
        free = (r for r in self._rungs if r.standby is None or used.get(r.name, 0) < r.standby)
        return next(free, self._rungs[-1])

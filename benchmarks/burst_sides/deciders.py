"""Who decides: the project's own policy, fed as the dispatcher feeds it, Ray Serve's rule, and a fixed number.

Owns: the glue. Must not know: the load, what comes of a decision.
"""

from __future__ import annotations

from benchmarks.burst_sides.cluster_model import DEPLOYMENT, OWN, Cluster
from benchmarks.burst_sides.serve_rule import CONTROL_LOOP_S, ServeRule, ServeSettings
from cluster.scheduling import BacklogScaler, Fleet, ScalingBounds, StartTimes

POLL_S = 0.5
"""As serve_apps.autoscale."""


class Ours:
    """The same objects as in the dispatcher. Until a replica has come it does not know how long that takes."""

    period_s = POLL_S

    def __init__(self, bounds: ScalingBounds) -> None:
        self._scaler = BacklogScaler(bounds)
        self._starts = StartTimes()

    def desired(self, cluster: Cluster, now_s: float) -> int:
        ordered, ready = cluster.ordered(), cluster.ready()
        start_s = self._starts.expected_s(DEPLOYMENT)
        coming = tuple(max(0.0, start_s - (now_s - m.ordered_at_s)) for m in ordered if m.model is None)
        demand = cluster.queue.demand(DEPLOYMENT, OWN, now_s)
        return self._scaler.decide(demand, len(ordered), now_s, Fleet(len(ready), coming, start_s)).replicas

    def came(self, seconds: float) -> None:
        self._starts.learn(DEPLOYMENT, "only", seconds)


class Fixed:
    """As many as the peak needs, always."""

    period_s = 60.0

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas

    def desired(self, cluster: Cluster, now_s: float) -> int:
        return self._replicas

    def came(self, seconds: float) -> None:
        pass


class Serve:
    """Ray Serve's request-based autoscaling: waiting and running requests over the target of each replica."""

    period_s = CONTROL_LOOP_S

    def __init__(self, settings: ServeSettings, least: int, most: int) -> None:
        self._rule = ServeRule(settings, least, most)

    def desired(self, cluster: Cluster, now_s: float) -> int:
        running = len(cluster.ready())
        self._rule.observe(cluster.requests(), running, now_s)
        return self._rule.decide(running, len(cluster.ordered()), now_s)

    def came(self, seconds: float) -> None:
        pass

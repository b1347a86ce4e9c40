"""Decides how many replicas the deployments of one model should have, for the dispatcher, and remembers why.

Concurrency: no method awaits, so each is atomic on the dispatcher's event loop.

Owns: a scaler and a neighbour per deployment, start times, the latest decisions. Must not know: Ray, Serve, who asks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from cluster.config import DeploymentConfig
from cluster.policies import scaling_bounds
from cluster.scheduling import (
    BacklogScaler,
    Claim,
    Demand,
    Fleet,
    Neighbour,
    ScalingDecision,
    StartTimes,
)
from serve_apps.messages import ReplicaReport
from serve_apps.replica_book import ReplicaBook


class ScalingDesk:
    """The scaling of one model's deployments."""

    def __init__(self, replicas: ReplicaBook) -> None:
        self._replicas = replicas
        self._starts = StartTimes()
        self._scalers: dict[str, BacklogScaler] = {}
        self._neighbours: dict[str, Neighbour] = {}
        self._decisions: dict[str, ScalingDecision] = {}

    def became_ready(self, report: ReplicaReport) -> None:
        if report.cold_start_s is not None:
            self._starts.learn(report.deployment, report.rung, report.cold_start_s)

    def decide(
        self, name: str, config: DeploymentConfig, demand: Demand, current: int, others: Iterable[Claim]
    ) -> tuple[ScalingDecision, Claim]:
        """For a deployment that has `current` replicas ordered; the claim is what the other deployments are to know."""
        now_s = time.monotonic()
        fleet = self._fleet(name)
        decision = self._scaler(name, config).decide(demand, current, now_s, fleet)
        neighbour = self._neighbours.get(name)
        if neighbour is None:
            neighbour = self._neighbours[name] = Neighbour()
        claim = neighbour.claim(
            Claim(name, config.pool, config.resources.gpus or config.resources.cpus or 1.0),
            needed=decision.needed,
            wanted=decision.replicas,
            current=current,
            placed=fleet.ready + len(fleet.coming_in_s),
            least=config.replicas.min,
            start_s=fleet.start_s,
            now_s=now_s,
        )
        if count := neighbour.give(claim, others, now_s):
            reason = f"{decision.reason}; {count} given up for a deployment that finds no room in pool {config.pool}"
            decision = replace(decision, replicas=decision.replicas - count, reason=reason)
        self._decisions[name] = decision
        return decision, claim

    def status(self) -> dict[str, Any]:
        """What `tribes status` shows."""
        return {
            name: {
                "replicas": decision.replicas,
                "reason": decision.reason,
                "start_s": self._starts.by_rung(name),
            }
            for name, decision in self._decisions.items()
        }

    def _scaler(self, name: str, config: DeploymentConfig) -> BacklogScaler:
        """The same one while the bounds are: it remembers what was needed lately."""
        scaler, bounds = self._scalers.get(name), scaling_bounds(config)
        if scaler is None or scaler.bounds != bounds:
            scaler = self._scalers[name] = BacklogScaler(bounds)
        return scaler

    def _fleet(self, name: str) -> Fleet:
        start_s, now_s = self._starts.expected_s(name), time.time()
        reports = [report for report in self._replicas.reports() if report.deployment == name]
        return Fleet(
            ready=sum(report.state == "ready" for report in reports),
            coming_in_s=tuple(
                max(0.0, start_s - (now_s - report.started_at_s)) for report in reports if report.state == "starting"
            ),
            start_s=start_s,
        )

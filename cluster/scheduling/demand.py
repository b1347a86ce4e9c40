"""Demand for a deployment: what waits, what arrives, and how fast a replica has been seen to work.

Owns: arrival meters per class and peak service rates per replica.
Must not know: how many replicas there should be (that is `autoscaling`), tenants, Ray.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.scheduling.rates import PeakRate, RateMeter
from cluster.vocabulary import RequestClass


@dataclass(frozen=True, slots=True)
class Demand:
    """Service is in weighted tokens (see `service`)."""

    waiting: int
    running: int
    backlog_service: float
    arrival_service_per_s: float
    replica_service_per_s: float
    """Best rate seen from one replica; 0.0 while unknown."""
    guests: int = 0
    """Waiting requests of classes that have no deployment of their own: worth one replica, not more."""


class DemandMeter:
    """Arrivals per class (10 s memory) and the best rate of a replica per deployment (halving every 10 minutes).

    What a replica could do is remembered after it is gone: a deployment that was scaled to zero knows its speed.
    """

    def __init__(self, arrival_tau_s: float = 10.0) -> None:
        self._arrival_tau_s = arrival_tau_s
        self._arrivals: dict[RequestClass, RateMeter] = {}
        self._work: dict[str, dict[str, PeakRate]] = {}
        self._gone: dict[str, PeakRate] = {}

    def arrived(self, request_class: RequestClass, service: float, now_s: float) -> None:
        meter = self._arrivals.get(request_class)
        if meter is None:
            meter = self._arrivals[request_class] = RateMeter(self._arrival_tau_s)
        meter.add(service, now_s)

    def worked(self, deployment: str, replica_id: str, service: float, now_s: float) -> None:
        per_replica = self._work.get(deployment)
        if per_replica is None:
            per_replica = self._work[deployment] = {}
        peak = per_replica.get(replica_id)
        if peak is None:
            peak = per_replica[replica_id] = PeakRate()
        peak.add(service, now_s)

    def forget_replica(self, deployment: str, replica_id: str, now_s: float) -> None:
        gone = self._work.get(deployment, {}).pop(replica_id, None)
        known = self._gone.get(deployment)
        if gone is not None and (known is None or gone.rate(now_s) > known.rate(now_s)):
            self._gone[deployment] = gone

    def read(
        self,
        deployment: str,
        request_class: RequestClass,
        waiting: int,
        backlog_service: float,
        running: int,
        guests: int,
        now_s: float,
    ) -> Demand:
        arrivals = self._arrivals.get(request_class)
        peaks = list(self._work.get(deployment, {}).values())
        if deployment in self._gone:
            peaks.append(self._gone[deployment])
        rate = max((peak.rate(now_s) for peak in peaks), default=0.0)
        return Demand(waiting, running, backlog_service, arrivals.rate(now_s) if arrivals else 0.0, rate, guests)

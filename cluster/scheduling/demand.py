"""Demand for a deployment: what waits, what arrives, and how fast a replica has been seen to work.

Owns: arrival meters per class, and what replicas do when they are busy.
Must not know: how many replicas there should be (that is `autoscaling`), tenants, Ray.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.scheduling.busy_rate import BusyRate
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
    """0.0 while unknown."""
    guests: int = 0
    """Waiting requests of classes that have no deployment of their own: worth one replica, not more."""
    saturated: bool = False
    """The rate was measured while requests waited. Otherwise it is the best one seen, and may be far too low."""
    prefill_s: float = 0.0
    """Seconds of prefill that lie ahead inside the engines, all replicas together."""


class DemandMeter:
    """Arrivals per class (10 s memory) and the rate of a busy replica per deployment. Until that is known, the best
    rate seen stands in for it (halving every 10 minutes)."""

    def __init__(self, arrival_tau_s: float = 10.0) -> None:
        self._arrival_tau_s = arrival_tau_s
        self._arrivals: dict[RequestClass, RateMeter] = {}
        self._busy: dict[str, BusyRate] = {}
        self._work: dict[str, dict[str, PeakRate]] = {}
        self._gone: dict[str, PeakRate] = {}

    def arrived(self, request_class: RequestClass, service: float, now_s: float) -> None:
        meter = self._arrivals.get(request_class)
        if meter is None:
            meter = self._arrivals[request_class] = RateMeter(self._arrival_tau_s)
        meter.add(service, now_s)

    def worked(
        self,
        deployment: str,
        replica_id: str,
        service: float,
        now_s: float,
        busy: bool = False,
        ended: float | None = None,
    ) -> None:
        """`busy`: somebody waits whom this replica could serve if it had a free slot; `ended`: a request that began
        then has ended with this."""
        per_replica = self._work.get(deployment)
        if per_replica is None:
            per_replica = self._work[deployment] = {}
            self._busy[deployment] = BusyRate()
        peak = per_replica.get(replica_id)
        if peak is None:
            peak = per_replica[replica_id] = PeakRate()
        peak.add(service, now_s)
        self._busy[deployment].note(replica_id, service, busy, now_s, ended)

    def forget_replica(self, deployment: str, replica_id: str, now_s: float) -> None:
        gone = self._work.get(deployment, {}).pop(replica_id, None)
        if gone is None:
            return
        self._busy[deployment].forget_replica(replica_id)
        known = self._gone.get(deployment)
        if known is None or gone.rate(now_s) > known.rate(now_s):
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
        prefill_s: float = 0.0,
    ) -> Demand:
        arrivals = self._arrivals.get(request_class)
        arriving = arrivals.rate(now_s) if arrivals else 0.0
        busy = self._busy[deployment].rate() if deployment in self._busy else 0.0
        rate = busy or self._best_seen(deployment, now_s)
        return Demand(waiting, running, backlog_service, arriving, rate, guests, busy > 0, prefill_s)

    def _best_seen(self, deployment: str, now_s: float) -> float:
        peaks = list(self._work.get(deployment, {}).values())
        if deployment in self._gone:
            peaks.append(self._gone[deployment])
        return max((peak.rate(now_s) for peak in peaks), default=0.0)

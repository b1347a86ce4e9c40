"""Scheduling policies: pure objects with an explicit clock, run unchanged by the live dispatcher and by simulation.

Owns: fair queueing, class order, admission, placement, demand and autoscaling decisions.
Must not know: Ray, engines, HTTP, files, the wall clock.
"""

from cluster.scheduling.autoscaling import BacklogScaler, Fleet, ScalingBounds, ScalingDecision
from cluster.scheduling.demand import Demand
from cluster.scheduling.hash_ring import HashRing, session_key
from cluster.scheduling.request_queue import RequestQueue
from cluster.scheduling.service import OutputPredictor, ServiceWeights
from cluster.scheduling.sharing import Claim, Neighbour
from cluster.scheduling.start_times import StartTimes
from cluster.scheduling.types import (
    ClassPolicy,
    Lease,
    Prepaid,
    QueuePolicy,
    RateLimitState,
    Refusal,
    Replica,
    RoutingPolicy,
    TenantLimits,
    TenantPolicy,
    Ticket,
    TokenUsage,
)

__all__ = [
    "BacklogScaler",
    "Claim",
    "ClassPolicy",
    "Demand",
    "Fleet",
    "HashRing",
    "Lease",
    "Neighbour",
    "OutputPredictor",
    "Prepaid",
    "QueuePolicy",
    "RateLimitState",
    "Refusal",
    "Replica",
    "RequestQueue",
    "RoutingPolicy",
    "ScalingBounds",
    "ScalingDecision",
    "ServiceWeights",
    "StartTimes",
    "TenantLimits",
    "TenantPolicy",
    "Ticket",
    "TokenUsage",
    "session_key",
]

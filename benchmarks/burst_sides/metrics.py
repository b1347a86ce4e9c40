"""What came of a run: how many requests were served in time, how soon after the burst's begin, at what cost.

Owns: the figures. Must not know: who decided.
"""

from __future__ import annotations

from typing import Any

from benchmarks.burst_sides.cluster_model import Cluster
from benchmarks.report import percentile

WAIT_TARGET_S, SLO_TTFT_S = 5.0, 10.0
"""What the policy aims at for the wait, and what a request must keep: twice that, to the first token."""
AFTERMATH_S = 300.0
"""After the burst, in which late waits are still its doing."""


def figures(cluster: Cluster, counted_from_s: float) -> dict[str, Any]:
    """Of requests that came and replicas that were there from `counted_from_s` to the end of the load."""
    load = cluster.load
    counted = [served for served in cluster.served if served.request.due_at_s >= counted_from_s]
    ttft_s = [served.ttft_s for served in counted]
    waited_s = [served.given_at_s - served.arrived_at_s for served in counted]
    return {
        "requests": len(counted),
        "attainment": sum(one <= SLO_TTFT_S for one in ttft_s) / len(counted),
        "burst_to_slo_s": burst_to_slo_s(cluster),
        "replica_seconds": cluster.replica_seconds(counted_from_s, load.seconds),
        "most_replicas": cluster.most(),
        "starts": sum(machine.ordered_at_s >= counted_from_s for machine in cluster.machines),
        "wait_p50_s": percentile(waited_s, 50),
        "wait_p99_s": percentile(waited_s, 99),
        "ttft_p50_s": percentile(ttft_s, 50),
        "ttft_p99_s": percentile(ttft_s, 99),
    }


def burst_to_slo_s(cluster: Cluster) -> float:
    """From the burst's begin until the last request arrived that waited beyond the wait target; 0 if none did."""
    load = cluster.load
    late = [
        served.arrived_at_s - load.burst_at_s
        for served in cluster.served
        if load.burst_at_s <= served.arrived_at_s < load.burst_ends_s + AFTERMATH_S
        and served.given_at_s - served.arrived_at_s > WAIT_TARGET_S
    ]
    return max(late, default=0.0)

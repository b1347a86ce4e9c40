"""Role: would a mix of accelerators cost less than the best single one. Owns: from candidates to Mélange and back.

Each accelerator takes part with its best shape for the class. A replica is one "GPU" of the program, so types have the
price of all GPUs of one. Must not know: how a candidate was made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from cluster.planning.melange import cheapest_fleet
from cluster.planning.results import Candidate, MixedFleet
from cluster.planning.search import Demand, Market, alone


def mixed_fleet(best: Mapping[str, Candidate], demand: Demand, market: Market) -> MixedFleet | None:
    """None where fewer than two accelerators can take part, or no mix that can be had is cheaper."""
    able = {name: item for name, item in best.items() if item.feasible or item.replica is not None}
    highest = {
        name: [alone(item.replica, bucket, demand.targets) for bucket in demand.buckets]
        for name, item in able.items()
        if item.replica is not None
    }
    prices = {name: market.usd_per_gpu_hour[name] * able[name].shape.gpus for name in highest}
    rates = [bucket.share * demand.peak_requests_per_s for bucket in demand.buckets]
    mixed = cheapest_fleet(rates, highest, prices)
    singles = [cheapest_fleet(rates, {name: highest[name]}, prices) for name in highest]
    single = min((fleet.usd_per_hour for fleet in singles if fleet), default=None)
    if mixed is None or len(mixed.counts) < 2 or (single is not None and mixed.usd_per_hour >= single - 1e-9):
        return None
    if any(count * able[name].shape.gpus > market.stock.get(name, math.inf) for name, count in mixed.counts.items()):
        return None
    shapes = {name: able[name].shape for name in mixed.counts}
    # Without a single type that takes every size, the mix is the only way.
    return MixedFleet(mixed, shapes, mixed.usd_per_hour, mixed.usd_per_hour if single is None else single)

"""Role: for one class, every candidate with its price, and which is best. Owns: the choice and the words why not.

What latency classes need is that replicas at the peak keep the targets; the price is that of all of them. Bursty work
pays its floor always and the rest while it bursts. Work without targets runs with full batches: the fewest GPUs that
hold the model with a large batch win by themselves, since splitting it further only adds messages; more load means
more replicas. Cheapest first; what costs the same is ordered by time to first token, then unquantised and with fewer
GPUs a replica first.
Must not know: files, screens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from cluster.hardware import ACCELERATORS
from cluster.planning.bursts import floor_replicas, mean_replicas
from cluster.planning.candidates import ENGINES, obstacle, shapes
from cluster.planning.load import Bucket, Replica, Targets, highest_rate, mean, operate
from cluster.planning.performance import Performance
from cluster.planning.results import Candidate
from cluster.planning.shape import Shape
from cluster.vocabulary import RequestClass

_FULL: Final = 0.9
"""Of a full batch's rate that is planned with where no target leaves a reserve."""


@dataclass(frozen=True, slots=True)
class Demand:
    """One class."""

    request_class: RequestClass
    buckets: Sequence[Bucket]
    requests_per_s: float
    peak_requests_per_s: float
    targets: Targets
    cold_start_s: float = 0.0

    @property
    def tokens_per_request(self) -> float:
        return mean(self.buckets, [b.prompt_tokens + b.output_tokens for b in self.buckets])


@dataclass(frozen=True, slots=True)
class Market:
    """What can be had."""

    usd_per_gpu_hour: Mapping[str, float]
    stock: Mapping[str, int]
    fp8_checkpoint: bool = False
    fp4_checkpoint: bool = False


def candidates(performance: Performance, demand: Demand, market: Market) -> list[Candidate]:
    """Every shape, the cheapest feasible one first; those that cannot serve the class at the end."""
    found = [evaluate(shape, performance, demand, market) for shape in _shapes(performance, demand, market)]
    feasible = sorted((c for c in found if c.feasible), key=_order)
    if feasible:
        best = feasible[0]
        feasible = [best, *(replace(c, verdict=_dearer(c, best)) for c in feasible[1:])]
    return feasible + [c for c in found if not c.feasible]


def _shapes(performance: Performance, demand: Demand, market: Market) -> Iterator[Shape]:
    engines = ENGINES[demand.request_class]
    measured = [c.shape for c in performance.calibrations if c.model == performance.model]
    default = shapes(
        market.usd_per_gpu_hour,
        performance.facts,
        engines[0],
        fp4=market.fp4_checkpoint,
        fp8=market.fp8_checkpoint,
    )
    # The formulas know no difference between engines: another one is tried where it was measured.
    wanted = (s for s in measured if s.engine in engines and s.accelerator in market.usd_per_gpu_hour)
    yield from dict.fromkeys([*default, *wanted])


def evaluate(shape: Shape, performance: Performance, demand: Demand, market: Market) -> Candidate:
    """What the class costs on that shape, or why it cannot run there."""
    known = shape.accelerator in ACCELERATORS
    problem = obstacle(shape, demand.request_class) if known else None
    if problem:
        return Candidate(shape, "roofline", verdict=problem)
    replica, basis = performance.replica(shape, demand.request_class, demand.buckets)
    if isinstance(replica, str):
        return Candidate(shape, basis, verdict=replica)
    rate = highest_rate(replica, demand.buckets, demand.targets)
    if isinstance(rate, str):
        return Candidate(shape, basis, replica, verdict=rate)
    if demand.targets.ttft_s is None and demand.targets.itl_s is None:
        rate *= _FULL
    priced = _priced(Candidate(shape, basis, replica, rate), demand, market)
    stock = market.stock.get(shape.accelerator)
    if stock is not None and priced.gpus > stock:
        reason = f"stock: needs {priced.gpus} {shape.accelerator}, there are {stock}"
        return replace(priced, replicas=0, verdict=reason)
    return priced


def _priced(candidate: Candidate, demand: Demand, market: Market) -> Candidate:
    replicas = max(1, math.ceil(demand.peak_requests_per_s / candidate.requests_per_s - 1e-9))
    floor, average = replicas, float(replicas)
    if demand.request_class == RequestClass.SEMI_ONLINE:
        wait_s = demand.targets.ttft_s if demand.targets.ttft_s is not None else math.inf
        wanted = floor_replicas(demand.peak_requests_per_s, candidate.requests_per_s, wait_s, demand.cold_start_s)
        floor = min(replicas, wanted)
        average = mean_replicas(floor, replicas, demand.requests_per_s, demand.peak_requests_per_s)
    usd = average * candidate.shape.gpus * market.usd_per_gpu_hour[candidate.shape.accelerator]
    tokens_per_s = demand.requests_per_s * demand.tokens_per_request
    each = demand.peak_requests_per_s / replicas
    point = None
    if demand.targets.ttft_s is not None or demand.targets.itl_s is not None:
        assert candidate.replica is not None
        at_peak = operate(candidate.replica, demand.buckets, each, demand.targets)
        point = None if isinstance(at_peak, str) else at_peak
    return replace(
        candidate,
        replicas=replicas,
        floor=0 if demand.request_class == RequestClass.OFFLINE else floor,
        usd_per_hour=usd,
        usd_per_mtok=usd / (tokens_per_s * 3600) * 1e6,
        tokens_per_s=demand.peak_requests_per_s * demand.tokens_per_request,
        point=point,
        utilisation=each / candidate.requests_per_s,
    )


def _order(candidate: Candidate) -> tuple[float, float, int, int, int, str]:
    calibrated = 0 if candidate.basis == "calibrated" else 1
    ttft = candidate.point.ttft_p99_s if candidate.point else 0.0
    # At the same price and latency, the weights as they are: fewer bits may cost quality.
    packed = 0 if candidate.shape.quantisation == "none" else 1
    return round(candidate.usd_per_hour, 6), ttft, packed, candidate.shape.gpus, calibrated, candidate.shape.title


def _dearer(candidate: Candidate, best: Candidate) -> str:
    if candidate.usd_per_hour > best.usd_per_hour:
        more = candidate.usd_per_hour / best.usd_per_hour - 1 if best.usd_per_hour else math.inf
        return f"price: {candidate.usd_per_hour:.2f} USD/h, {more:.0%} more"
    if candidate.point and best.point and candidate.point.ttft_p99_s > best.point.ttft_p99_s:
        return "latency: the same price, first tokens later"
    return "the same price; more GPUs a replica, or nothing known to be better"


def best_per_accelerator(found: Sequence[Candidate]) -> dict[str, Candidate]:
    """For each accelerator its cheapest candidate, else one that says why there is none."""
    best: dict[str, Candidate] = {}
    for candidate in found:  # feasible ones come first
        name = candidate.shape.accelerator
        known = best.get(name)
        if known is None or (not known.feasible and _closer(candidate, known)):
            best[name] = candidate
    return best


def _closer(candidate: Candidate, other: Candidate) -> bool:
    """Of two that fail: the one that got further tells more."""
    return _effort(candidate) > _effort(other)


def _effort(candidate: Candidate) -> tuple[bool, int, int]:
    return candidate.replica is not None, candidate.shape.tensor_parallel, candidate.shape.gpus


def alone(replica: Replica, bucket: Bucket, targets: Targets) -> float:
    """Requests a second of one replica that serves nothing but this size; 0 where it cannot."""
    only = [replace(bucket, share=1.0)]
    rate = highest_rate(replica, only, targets)
    return 0.0 if isinstance(rate, str) else rate

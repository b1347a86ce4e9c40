"""From the courses of requests to a result. Owns: the formulas of everything but fairness. Must not know: policies.

Columns of numbers instead of requests: a million of them are summed up in about a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from cluster.scheduling import ServiceWeights
from cluster.simulation.fairness import fairness
from cluster.simulation.pool import ReplicaPool
from cluster.simulation.request import Request
from cluster.simulation.results import DeploymentResult, Fairness, GroupResult, Rates, Spread
from cluster.simulation.settings import Settings, SloSettings
from cluster.vocabulary import RequestClass

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUCKETS = 120
_COLUMNS = (
    "arrived_s",
    "given_s",
    "first_token_s",
    "finished_s",
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
)


def classes(requests: Sequence[Request]) -> dict[RequestClass, list[Request]]:
    """Requests by class, the most urgent class first."""
    found: dict[RequestClass, list[Request]] = {c: [] for c in RequestClass}
    for request in requests:
        found[request.request_class].append(request)
    return {c: members for c, members in found.items() if members}


def tenants(requests: Sequence[Request]) -> dict[str, list[Request]]:
    found: dict[str, list[Request]] = {}
    for request in requests:
        found.setdefault(request.tenant, []).append(request)
    return dict(sorted(found.items()))


def group(name: str, requests: Sequence[Request], slo: SloSettings, seconds: float) -> GroupResult:
    """`seconds`: what goodput is counted over."""
    columns = _columns(requests)
    done = columns["finished_s"] >= 0
    good = int(_good(columns, slo).sum())
    arrived, first = columns["arrived_s"][done], columns["first_token_s"][done]
    finished, output = columns["finished_s"][done], columns["output_tokens"][done]
    long = output > 1
    return GroupResult(
        name=name,
        requests=len(requests),
        finished=int(done.sum()),
        refused=dict(sorted(Counter(r.refusal for r in requests if r.refusal is not None).items())),
        good=good,
        attainment=good / len(requests),
        goodput_per_s=good / seconds if seconds else 0.0,
        prompt_tokens=int(columns["prompt_tokens"][done].sum()),
        cached_tokens=int(columns["cached_tokens"][done].sum()),
        output_tokens=int(output.sum()),
        wait=_spread(columns["given_s"][done] - arrived),
        ttft=_spread(first - arrived),
        tpot=_spread((finished - first)[long] / (output[long] - 1)),
        e2e=_spread(finished - arrived),
    )


def unfairness(requests: Sequence[Request], service: ServiceWeights, shares: Mapping[str, float]) -> Fairness | None:
    """None where there is one tenant only."""
    if len({request.tenant for request in requests}) < 2:
        return None
    return fairness(requests, service, shares)


def deployment(pool: ReplicaPool, end_s: float) -> DeploymentResult:
    replicas = pool.replicas()
    ready_s = sum(max(0.0, min(r.ended_s, end_s) - r.ready_s) for r in replicas)
    busy_s = sum(r.model.busy_s for r in replicas)
    seconds = pool.replica_seconds(end_s)
    return DeploymentResult(
        name=pool.name,
        replica_seconds=seconds,
        usd=seconds / 3600 * pool.usd_per_hour,
        utilisation=min(1.0, busy_s / ready_s) if ready_s > 0 else 0.0,
        most_replicas=max((ready + starting for _, ready, starting in pool.timeline), default=0),
        starts=dict(pool.starts),
        failures=pool.failures,
        preemptions=sum(r.model.preemptions for r in replicas),
        timeline=tuple(_last_of_each_moment(pool.timeline)),
    )


def rates(requests: Sequence[Request], settings: Settings, end_s: float) -> Rates:
    import numpy as np

    width_s = max(end_s, 1e-9) / BUCKETS
    arrived, good, tokens = (np.zeros(BUCKETS) for _ in range(3))
    for request_class, members in classes(requests).items():
        columns = _columns(members)
        came = np.minimum(columns["arrived_s"] / width_s, BUCKETS - 1).astype(int)
        arrived += np.bincount(came, minlength=BUCKETS)
        good += np.bincount(came, weights=_good(columns, settings.slo_of(request_class)), minlength=BUCKETS)
        done = columns["finished_s"] >= 0
        ended = np.minimum(columns["finished_s"][done] / width_s, BUCKETS - 1).astype(int)
        tokens += np.bincount(ended, weights=columns["output_tokens"][done], minlength=BUCKETS)
    whole = [tuple(int(value) for value in column) for column in (arrived, good, tokens)]
    return Rates(width_s, *whole)


def _columns(requests: Sequence[Request]) -> dict[str, NDArray]:
    import numpy as np

    count = len(requests)
    return {name: np.fromiter((getattr(r, name) for r in requests), float, count) for name in _COLUMNS}


def _good(columns: dict[str, NDArray], slo: SloSettings) -> NDArray:
    import numpy as np

    good = columns["finished_s"] >= 0
    if slo.ttft_s is not None:
        good &= columns["first_token_s"] - columns["arrived_s"] <= slo.ttft_s
    if slo.e2e_s is not None:
        good &= columns["finished_s"] - columns["arrived_s"] <= slo.e2e_s
    if slo.tpot_s is not None:
        steps = np.maximum(columns["output_tokens"] - 1, 1)
        good &= (columns["finished_s"] - columns["first_token_s"]) / steps <= slo.tpot_s
    return good


def _spread(seconds: NDArray) -> Spread | None:
    import numpy as np

    if not len(seconds):
        return None
    return Spread(float(seconds.mean()), *(float(p) for p in np.percentile(seconds, (50, 90, 95, 99))))


def _last_of_each_moment(timeline: Sequence[tuple[float, int, int]]) -> Iterator[tuple[float, int, int]]:
    for place, entry in enumerate(timeline):
        if place + 1 == len(timeline) or timeline[place + 1][0] != entry[0]:
            yield entry

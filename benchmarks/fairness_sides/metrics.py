"""Fairness of a course, in the VTC paper's terms; docs/queue.md says how to read them.

Service of a request is its weighted tokens, spread evenly from its first token to its end. Owns: the formulas.
Must not know: policies, engines.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.fairness_sides.engine_model import Running
from benchmarks.fairness_sides.workload import Request
from cluster.simulation.fairness import max_min

WARM_UP_S = 30.0
WINDOW_S = 60.0
TICKS = 20


@dataclass(frozen=True, slots=True)
class Difference:
    """Windowed service difference: one value a window, in service per second."""

    starts_s: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def max(self) -> float:
        return max(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def variance(self) -> float:
        return statistics.pvariance(self.values)


def service_between(served: Iterable[Running], start_s: float, end_s: float) -> dict[str, float]:
    """Service that each tenant got from `start_s` to `end_s`."""
    got: dict[str, float] = {}
    for one in served:
        overlap_s = min(end_s, one.finished_at_s) - max(start_s, one.first_token_at_s)
        if overlap_s > 0:
            part = overlap_s / (one.finished_at_s - one.first_token_at_s)
            got[one.request.tenant] = got.get(one.request.tenant, 0.0) + part * one.request.service
        elif start_s <= one.first_token_at_s == one.finished_at_s < end_s:  # an answer of one token takes no time
            got[one.request.tenant] = got.get(one.request.tenant, 0.0) + one.request.service
    return got


def windowed_difference(served: Sequence[Running], requests: Sequence[Request], seconds: float) -> Difference:
    """`d = sum over tenants j of min(max_k s_k - s_j, |asked_j - s_j|)` in each window of a minute.

    s is the service a tenant got, `asked` that of its requests which arrived in the window, both per second. A tenant
    that got less than another counts by how much, but never by more than it asked for.
    """
    starts = tuple((seconds - WARM_UP_S) / TICKS * tick for tick in range(1, TICKS))
    tenants = sorted({request.tenant for request in requests})
    values = []
    for start_s in starts:
        got = service_between(served, start_s, start_s + WINDOW_S)
        asked: dict[str, float] = {}
        for request in requests:
            if start_s <= request.arrived_at_s < start_s + WINDOW_S:
                asked[request.tenant] = asked.get(request.tenant, 0.0) + request.service
        most = max(got.values(), default=0.0)
        lacks = [min(most - got.get(t, 0.0), abs(asked.get(t, 0.0) - got.get(t, 0.0))) for t in tenants]
        values.append(sum(lacks) / WINDOW_S)
    return Difference(starts, tuple(values))


def accumulated_gap(served: Iterable[Running], tenants: Iterable[str], start_s: float, end_s: float) -> float:
    """Service of the tenant that got most less that of the one that got least; all of them backlogged throughout."""
    got = service_between(served, start_s, end_s)
    amounts = [got.get(tenant, 0.0) for tenant in tenants]
    return max(amounts) - min(amounts)


def shares(served: Iterable[Running], start_s: float, end_s: float) -> dict[str, float]:
    """Each tenant's part of the service."""
    got = service_between(served, start_s, end_s)
    total = sum(got.values())
    return {tenant: amount / total for tenant, amount in sorted(got.items())}


def jain(amounts: Sequence[float]) -> float:
    """`(sum x)^2 / (n * sum x^2)`: 1 when all are equal, 1/n when one has everything."""
    squares = sum(x * x for x in amounts)
    return sum(amounts) ** 2 / (len(amounts) * squares) if squares else 1.0


def jain_of_shares(
    served: Iterable[Running], requests: Iterable[Request], end_s: float, weights: Mapping[str, float] | None = None
) -> float:
    """Jain's index of service over what was due, `min(asked, fair share)`, from the start to `end_s`.

    The fair share is max-min: what those who ask for less leave over is divided among the others by weight.
    """
    asked: dict[str, float] = {}
    for request in requests:
        asked[request.tenant] = asked.get(request.tenant, 0.0) + request.service
    got = service_between(served, 0.0, end_s)
    due = max_min(asked, sum(got.values()), weights or {})
    return jain([got.get(tenant, 0.0) / due[tenant] for tenant in asked if due[tenant] > 0])


def ttfts_s(served: Iterable[Running], tenants: Iterable[str] | None = None) -> list[float]:
    """Seconds from arrival to first token, of some or all tenants."""
    wanted = None if tenants is None else set(tenants)
    return [r.first_token_at_s - r.request.arrived_at_s for r in served if wanted is None or r.request.tenant in wanted]

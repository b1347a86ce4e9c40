"""Fairness among tenants, in the VTC paper's terms. docs/queue.md says how to read them.

Service of a request is its weighted tokens (`input weight * prompt + output weight * output`), spread evenly from its
first token to its end.

    d(window) = sum over tenants j of min(max_k s_k - s_j, |asked_j - s_j|)   over windows of a minute
    Jain      = (sum x)^2 / (n * sum x^2),   x = service / min(asked, max-min fair share)

Owns: these formulas. Must not know: policies, engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from cluster.scheduling import ServiceWeights
from cluster.simulation.request import Request
from cluster.simulation.results import Fairness

WARM_UP_S, WINDOW_S, TICKS = 30.0, 60.0, 20


def fairness(requests: Sequence[Request], service: ServiceWeights, shares: Mapping[str, float]) -> Fairness:
    """Of requests of one class; `shares` are the tenants' weights, 1 where none is given."""
    last_s = max(request.arrived_s for request in requests)
    differences = _windowed_differences(requests, service, last_s)
    return Fairness(_jain(requests, service, shares, last_s), max(differences), fmean(differences))


def service_between(
    requests: Iterable[Request], service: ServiceWeights, start_s: float, end_s: float
) -> dict[str, float]:
    """What each tenant got."""
    got: dict[str, float] = {}
    for request in requests:
        if request.first_token_s < 0 or request.first_token_s >= end_s:
            continue
        finished_s, whole = request.finished_s, service.of(request.prompt_tokens, request.output_tokens)
        if finished_s < 0 or finished_s < start_s:
            continue
        overlap_s = min(end_s, finished_s) - max(start_s, request.first_token_s)
        length_s = finished_s - request.first_token_s
        # An answer of one token takes no time.
        part = overlap_s / length_s if length_s > 0 else float(start_s <= finished_s < end_s)
        got[request.tenant] = got.get(request.tenant, 0.0) + part * whole
    return got


def _windowed_differences(requests: Sequence[Request], service: ServiceWeights, last_s: float) -> list[float]:
    tenants = sorted({request.tenant for request in requests})
    step_s = max(last_s - WARM_UP_S, 0.0) / TICKS
    found = []
    for tick in range(1, TICKS):
        start_s = step_s * tick
        got = service_between(requests, service, start_s, start_s + WINDOW_S)
        came = [r for r in requests if start_s <= r.arrived_s < start_s + WINDOW_S]
        asked = _asked(came, service)
        most = max(got.values(), default=0.0)
        lacks = (min(most - got.get(t, 0.0), abs(asked.get(t, 0.0) - got.get(t, 0.0))) for t in tenants)
        found.append(sum(lacks) / WINDOW_S)
    return found


def _asked(requests: Iterable[Request], service: ServiceWeights) -> dict[str, float]:
    asked: dict[str, float] = {}
    for request in requests:
        more = service.of(request.prompt_tokens, request.output_tokens)
        asked[request.tenant] = asked.get(request.tenant, 0.0) + more
    return asked


def _jain(requests: Sequence[Request], service: ServiceWeights, shares: Mapping[str, float], end_s: float) -> float:
    """Until the last arrival: afterwards everybody is served."""
    asked = _asked(requests, service)
    got = service_between(requests, service, 0.0, end_s)
    due = max_min(asked, sum(got.values()), shares)
    values = [got.get(tenant, 0.0) / due[tenant] for tenant in asked if due[tenant] > 0]
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def max_min(asked: Mapping[str, float], capacity: float, shares: Mapping[str, float]) -> dict[str, float]:
    """Divide `capacity` so that nobody gets more than it asks, and the rest is level per share."""
    due: dict[str, float] = {}
    left, shares_left = capacity, sum(shares.get(tenant, 1.0) for tenant in asked)
    for tenant in sorted(asked, key=lambda t: (asked[t] / shares.get(t, 1.0), t)):
        share = shares.get(tenant, 1.0)
        due[tenant] = min(asked[tenant], left * share / shares_left)
        left, shares_left = left - due[tenant], shares_left - share
    return due

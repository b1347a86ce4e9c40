"""Drawn loads: tenants with a rate, a burstiness and lengths.

Gaps between a tenant's requests are Gamma distributed with coefficient of variation `cv`: 1 is Poisson, 0 evenly, above
1 in bursts. Lengths are log-normal with a mean and a coefficient of variation. Every tenant has its own random
numbers, so that adding one changes no other's load.

Owns: drawing. Must not know: engines, results.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

from cluster.simulation.request import Request
from cluster.simulation.workload.traces import Trace
from cluster.vocabulary import RequestClass


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens: log-normal, at least one, at most `most`."""

    mean: float
    cv: float = 1.0
    most: int = 32_768

    def __post_init__(self) -> None:
        if self.mean < 1 or self.cv < 0 or self.most < 1:
            raise ValueError(f"lengths need mean >= 1, cv >= 0, most >= 1; got {self}")

    def draw(self, rng: random.Random) -> int:
        if not self.cv:
            return min(self.most, round(self.mean))
        variance = math.log1p(self.cv * self.cv)
        drawn = rng.lognormvariate(math.log(self.mean) - variance / 2, math.sqrt(variance))
        return max(1, min(self.most, round(drawn)))


@dataclass(frozen=True, slots=True)
class TenantLoad:
    """What one tenant asks for."""

    tenant: str
    requests_per_s: float
    prompt_tokens: Lengths
    output_tokens: Lengths
    cv: float = 1.0
    request_class: RequestClass = RequestClass.ONLINE
    from_s: float = 0.0
    until_s: float = math.inf

    def __post_init__(self) -> None:
        if self.requests_per_s <= 0 or self.cv < 0 or self.until_s <= self.from_s:
            raise ValueError(f"tenant {self.tenant!r} needs a rate above 0, cv >= 0 and from_s < until_s")


def draw(loads: Iterable[TenantLoad], seconds: float, seed: int) -> Trace:
    """Everything that arrives within `seconds`."""
    requests = [request for load in loads for request in _of_tenant(load, seconds, seed)]
    if not requests:
        raise ValueError(f"nothing arrives within {seconds:g} s: raise a rate or the time")
    requests.sort(key=lambda request: (request.arrived_s, request.tenant))
    for number, request in enumerate(requests):
        request.number = number
    return Trace(requests, None)


def _of_tenant(load: TenantLoad, seconds: float, seed: int) -> list[Request]:
    rng = random.Random(f"{seed}-{load.tenant}-{load.request_class}")
    gap_s = 1 / load.requests_per_s
    shape = 1 / (load.cv * load.cv) if load.cv else 0.0
    requests: list[Request] = []
    at_s = load.from_s
    while True:
        at_s += rng.gammavariate(shape, gap_s / shape) if shape else gap_s
        if at_s >= min(seconds, load.until_s):
            return requests
        prompt, output = load.prompt_tokens.draw(rng), load.output_tokens.draw(rng)
        requests.append(Request(0, at_s, prompt, output, load.tenant, load.request_class))

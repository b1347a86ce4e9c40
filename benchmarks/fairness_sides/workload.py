"""Who asks for what, and when. Owns: requests, the arena trace's format, synthetic open-loop loads.

Must not know: engines, policies, metrics.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.scheduling import ServiceWeights

WEIGHTS = ServiceWeights()
"""Input 1, output 2: the paper's weights and the queue's defaults."""
ARENA_FILE = "vtc_arena_27tenants.csv"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the client knows it in hindsight; `number` tells requests of one load apart."""

    number: int
    tenant: str
    arrived_at_s: float
    prompt_tokens: int
    output_tokens: int

    @property
    def service(self) -> float:
        """Weighted tokens of the whole request."""
        return WEIGHTS.of(self.prompt_tokens, self.output_tokens)


def arena(folder: Path) -> list[Request]:
    """The trace of 27 tenants in `folder`: arrivals of LMSYS Chatbot Arena as the VTC paper used them."""
    with (folder / ARENA_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Request(number, row["tenant"], float(row["arrived_at_s"]), int(row["prompt_tokens"]), int(row["output_tokens"]))
        for number, row in enumerate(rows)
    ]


def steady(rates_per_s: Mapping[str, float], seconds: float, prompt_tokens: int, output_tokens: int) -> list[Request]:
    """Every tenant asks at even intervals, all requests of one size."""
    times = [(k / rate, tenant) for tenant, rate in rates_per_s.items() for k in range(int(seconds * rate))]
    return _numbered(Request(0, tenant, at_s, prompt_tokens, output_tokens) for at_s, tenant in sorted(times))


def poisson(
    rates_per_s: Mapping[str, float],
    seconds: float,
    prompt_tokens: tuple[int, int],
    output_tokens: tuple[int, int],
    seed: int,
) -> list[Request]:
    """Every tenant asks at random times and sizes, drawn from its own stream: leaving one out changes no other's."""
    requests = []
    for tenant, rate in rates_per_s.items():
        rng = random.Random(f"{seed}-{tenant}")
        at_s = rng.expovariate(rate)
        while at_s < seconds:
            requests.append(Request(0, tenant, at_s, rng.randint(*prompt_tokens), rng.randint(*output_tokens)))
            at_s += rng.expovariate(rate)
    return _numbered(sorted(requests, key=lambda r: (r.arrived_at_s, r.tenant)))


def _numbered(requests: Iterable[Request]) -> list[Request]:
    return [replace(request, number=number) for number, request in enumerate(requests)]

"""Recorded traffic with a burst in it.

In the burst every request is there ten times: itself, and nine times at random moments of the same minute. So lengths
and tenants are those of the recording.

Owns: reading the traces. Must not know: replicas, who decides on their number.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from benchmarks.routing_sides.workload import Request

SERVEGEN, AZURE = "servegen", "azure"
FILES = {SERVEGEN: "servegen_m-small_1h.csv", AZURE: "azure_2023_conv.csv"}
BURST_S, FACTOR = 60.0, 10


@dataclass(frozen=True, slots=True)
class Load:
    """Requests in order of their arrival, and when the burst begins."""

    requests: list[Request]
    seconds: float
    burst_at_s: float

    @property
    def burst_ends_s(self) -> float:
        return self.burst_at_s + BURST_S


def load(folder: Path, name: str, first_s: float, seconds: float, burst_at_s: float, seed: int) -> Load:
    """`seconds` of a trace from `first_s` on, with a burst."""
    rng = random.Random(seed)
    found = []
    for request in _rows(folder / FILES[name], name):
        at_s = request.due_at_s - first_s
        if not 0 <= at_s < seconds:
            continue
        found.append(replace(request, due_at_s=at_s))
        if burst_at_s <= at_s < burst_at_s + BURST_S:
            found += [replace(request, due_at_s=burst_at_s + rng.random() * BURST_S) for _ in range(FACTOR - 1)]
    found.sort(key=lambda request: request.due_at_s)
    return Load([replace(request, number=number) for number, request in enumerate(found)], seconds, burst_at_s)


def _rows(path: Path, name: str) -> Iterator[Request]:
    with path.open() as file:
        rows = csv.DictReader(file)
        if name == SERVEGEN:
            for row in rows:
                at_s, tokens = float(row["arrived_at_s"]), (int(row["prompt_tokens"]), int(row["output_tokens"]))
                yield _request(row["tenant"], at_s, *tokens)
            return
        began: datetime | None = None
        for row in rows:
            at = datetime.fromisoformat(row["TIMESTAMP"])
            began = began or at
            tokens = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            yield _request("azure", (at - began).total_seconds(), *tokens)


def _request(tenant: str, at_s: float, prompt_tokens: int, output_tokens: int) -> Request:
    """Without a prefix that another one shares."""
    return Request(0, tenant, "", at_s, max(1, prompt_tokens), max(1, output_tokens), (), (), ())

"""Who pays what. Owns: the rule that splits a deployment's cost among its users. Must not know: tables, queries.

Replicas cost money while they live, idle or not. What a deployment cost over a period, in dollars and replica-seconds,
is split by the service (weighted tokens: w_in x uncached input + w_out x output) that each got from it in that period;
what nobody used is `idle`. The period is the one asked about: split day by day, every day is one of its own. What was
paid to an upstream for a request needs no split: it is the tenant's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.scheduling.service import ServiceWeights
from cluster.scheduling.types import TokenUsage

NOBODY = "(idle)"
Shared = tuple[Any, ...]
"""What is paid for together: (deployment, day), the day being None where days are not told apart."""


@dataclass(frozen=True, slots=True)
class Cost:
    usd: float = 0.0
    replica_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TenantCost:
    """What one tenant used of one deployment (or upstream) in a period, and its share of what that cost."""

    tenant: str
    deployment: str
    request_class: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    usd: float
    replica_seconds: float = 0.0

    @property
    def usd_per_mtok(self) -> float | None:
        return usd_per_mtok(self.usd, self.prompt_tokens + self.output_tokens)


def usd_per_mtok(usd: float, tokens: int) -> float | None:
    return usd / tokens * 1e6 if tokens else None


class Split:
    """What a unit of service cost, per deployment (and day). `usage` holds the sums of everybody's use."""

    def __init__(
        self,
        usage: Iterable[Mapping[str, Any]],
        replica_seconds: Iterable[Mapping[str, Any]],
        weights: ServiceWeights,
    ) -> None:
        self._weights = weights
        self._service: dict[Shared, float] = {}
        for row in usage:
            shared = _shared(row)
            self._service[shared] = self._service.get(shared, 0.0) + weights.of_usage(_tokens(row))
        self._lives = {_shared(row): row for row in replica_seconds}

    def of(self, row: Mapping[str, Any]) -> Cost:
        """The part of this use, a row of tokens of one deployment (and day)."""
        shared = _shared(row)
        life, total = self._lives.get(shared), self._service.get(shared, 0.0)
        if life is None or not total:
            return Cost()
        share = self._weights.of_usage(_tokens(row)) / total
        return Cost(share * float(life["usd"]), share * float(life["seconds"]))

    def idle(self) -> list[Mapping[str, Any]]:
        """Rows of `replica_seconds` of which nobody used anything."""
        return [life for shared, life in self._lives.items() if not self._service.get(shared)]


def tenant_costs(
    usage_totals: Iterable[Mapping[str, Any]], replica_seconds: Iterable[Mapping[str, Any]], weights: ServiceWeights
) -> list[TenantCost]:
    """Rows of `Store.usage_totals` and `Store.replica_seconds` of the same period -> costs. They add up to the
    total.
    """
    rows = list(usage_totals)
    split = Split(rows, replica_seconds, weights)
    costs = []
    for row in rows:
        cost = split.of(row)
        costs.append(
            TenantCost(
                row["tenant"],
                row["deployment"],
                row["request_class"],
                int(row["requests"]),
                int(row["prompt_tokens"]),
                int(row["cached_tokens"]),
                int(row["output_tokens"]),
                cost.usd + float(row["upstream_usd"]),
                cost.replica_seconds,
            )
        )
    idle = [TenantCost(NOBODY, r["deployment"], "-", 0, 0, 0, 0, r["usd"], r["seconds"]) for r in split.idle()]
    return costs + idle


def _shared(row: Mapping[str, Any]) -> Shared:
    return row["deployment"], row.get("day_s")


def _tokens(row: Mapping[str, Any]) -> TokenUsage:
    return TokenUsage(int(row["prompt_tokens"]), int(row["cached_tokens"]), int(row["output_tokens"]))

"""Who pays what. Owns: the rule that splits a deployment's cost among its tenants. Must not know: tables, queries.

Replicas cost money while they live, idle or not. A deployment's cost over a period is split by the service (weighted
tokens: w_in x uncached input + w_out x output) that each tenant and class got from it; what nobody used is `idle`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.scheduling.service import ServiceWeights
from cluster.scheduling.types import TokenUsage

NOBODY = "(idle)"


@dataclass(frozen=True, slots=True)
class TenantCost:
    """What one tenant used of one deployment in a period, and its share of what the deployment cost."""

    tenant: str
    deployment: str
    request_class: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    usd: float

    @property
    def usd_per_mtok(self) -> float | None:
        tokens = self.prompt_tokens + self.output_tokens
        return self.usd / tokens * 1e6 if tokens else None


def tenant_costs(
    usage_totals: Iterable[Mapping[str, Any]], replica_seconds: Iterable[Mapping[str, Any]], weights: ServiceWeights
) -> list[TenantCost]:
    """Rows of `Store.usage_totals` and `Store.replica_seconds` of the same period -> costs. They add up to the
    total.
    """
    rows = list(usage_totals)
    service = [weights.of_usage(_tokens(row)) for row in rows]
    total: dict[str, float] = {}
    for row, amount in zip(rows, service, strict=True):
        total[row["deployment"]] = total.get(row["deployment"], 0.0) + amount
    spent = {row["deployment"]: float(row["usd"]) for row in replica_seconds}
    costs = []
    for row, amount in zip(rows, service, strict=True):
        deployment = row["deployment"]
        share = amount / total[deployment] if total[deployment] else 0.0
        costs.append(
            TenantCost(
                row["tenant"],
                deployment,
                row["request_class"],
                int(row["requests"]),
                int(row["prompt_tokens"]),
                int(row["cached_tokens"]),
                int(row["output_tokens"]),
                share * spent.get(deployment, 0.0),
            )
        )
    idle = [TenantCost(NOBODY, name, "-", 0, 0, 0, 0, usd) for name, usd in spent.items() if not total.get(name)]
    return costs + idle


def _tokens(row: Mapping[str, Any]) -> TokenUsage:
    return TokenUsage(int(row["prompt_tokens"]), int(row["cached_tokens"]), int(row["output_tokens"]))

"""Who used what and what it cost. Owns: joining the ledger with what clients saw. Must not know: the screen."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from cluster.cli.status_data import costs
from cluster.cli.tenants import open_store
from cluster.config import TribesConfig
from cluster.demo.results import RequestResult
from cluster.scheduling.service import ServiceWeights
from cluster.scheduling.types import TokenUsage

LEDGER_WAIT_S = 10.0
POLL_S = 0.2
OFFLINE_JOB = "(offline job)"


def wait_billed(config: TribesConfig, since_s: float, requests: int) -> bool:
    """Until the ledger has so many requests; gateways write it every half second. False when it has not in time."""
    store = open_store(config)
    deadline = time.monotonic() + LEDGER_WAIT_S
    try:
        while sum(row["requests"] for row in store.usage_totals(since_s)) < requests:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
    finally:
        store.close()
    return True


def all_costs(config: TribesConfig, since_s: float, offline_report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The ledger's split of the served deployments, and the offline job, which pays for its own engine."""
    run = offline_report["run"]
    offline = {
        "tenant": OFFLINE_JOB,
        "deployment": " + ".join(pool["name"] for pool in offline_report["pools"]),
        "request_class": "offline",
        "requests": offline_report["rows"],
        "prompt_tokens": run["tokens"]["input"],
        "cached_tokens": run["tokens"]["cached_input"],
        "output_tokens": run["tokens"]["output"],
        "usd": run["usd"],
        "usd_per_mtok": run["usd_per_mtok"],
    }
    return [*costs(config, since_s), offline]


def burst_shares(
    burst: Sequence[RequestResult],
    weights: ServiceWeights,
    tenant_weights: Mapping[str, float],
    bill: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """One row per tenant of the burst.

    Everybody is served in the end, so the shares of the whole only tell who asked for how much. Fairness shows in who
    went first: `first_half_share` is a tenant's part of that half of the requests that waited least.
    """
    early = _first_half(burst)
    service = {tenant: _service(burst, tenant, weights) for tenant in tenant_weights}
    total = sum(service.values())
    rows = []
    for tenant, weight in tenant_weights.items():
        mine = [request for request in burst if request.tenant == tenant]
        answers = [request.answer for request in mine if request.answer is not None]
        waits_s = [answer.queue_wait_s for answer in answers if answer.queue_wait_s is not None]
        paid = [row for row in bill if row["tenant"] == tenant and row["request_class"] == "semi_online"]
        tokens = sum(answer.prompt_tokens + answer.output_tokens for answer in answers)
        usd = sum(row["usd"] for row in paid)
        rows.append(
            {
                "tenant": tenant,
                "weight": weight,
                "requests": len(mine),
                "errors": len(mine) - len(answers),
                "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
                "output_tokens": sum(answer.output_tokens for answer in answers),
                "service": service[tenant],
                "service_share": service[tenant] / total if total else None,
                "first_half_share": early.count(tenant) / len(early) if early else None,
                "queue_wait_p50_s": median(waits_s) if waits_s else None,
                "e2e_p50_s": median([answer.total_s for answer in answers]) if answers else None,
                "usd": usd,
                "usd_per_mtok": usd / tokens * 1e6 if tokens else None,
            }
        )
    return rows


def _first_half(burst: Sequence[RequestResult]) -> list[str]:
    """Tenants of the requests that were granted first; all were sent at the same moment."""
    waits = [(r.answer.queue_wait_s, r.tenant) for r in burst if r.answer and r.answer.queue_wait_s is not None]
    return [tenant for _, tenant in sorted(waits, key=lambda item: item[0])[: len(waits) // 2]]


def _service(burst: Sequence[RequestResult], tenant: str, weights: ServiceWeights) -> float:
    answers = [request.answer for request in burst if request.tenant == tenant and request.answer is not None]
    return sum(weights.of_usage(TokenUsage(a.prompt_tokens, a.cached_tokens, a.output_tokens)) for a in answers)

"""The four simulated scenarios: which load, which policies, which figures. Owns: their numbers.

- `arena`: the recorded trace of 27 tenants; then again with every arrival moved by up to 0.1 s, because a maximum over
  19 windows of one course says little about a policy: the same policy's moves by a tenth either way.
- `overload`: two tenants that both want more than half, one of them twice as much as the other.
- `weights`: four tenants of weights 1 to 4, all wanting more than their share.
- `noisy`: four quiet tenants, alone and beside one that offers twenty times its share.

Must not know: how figures are shown or stored.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.fairness_sides import metrics
from benchmarks.fairness_sides.engine_model import Course, EngineModel, Policy
from benchmarks.fairness_sides.ours import Ours
from benchmarks.fairness_sides.policies import rivals
from benchmarks.fairness_sides.workload import Request, arena, poisson, steady
from benchmarks.report import percentile

OURS, OURS_LIMITED = "tribes", "tribes_max_concurrent"
MAX_CONCURRENT = 6
"""Of every tenant in `OURS_LIMITED`: the model runs about 30 such requests at once, for five tenants."""
ARENA_S, ARENA_MOVED_S = 600.0, 0.1
PAIRED = ("fcfs", "lcf", "vtc", "vtc_predicted", "vtc_oracle", OURS)
"""Policies that run in every repetition of the arena trace; the others run once."""
OVERLOAD_RATES, OVERLOAD_S, SIZE = {"modest": 1.5, "greedy": 3.0}, 360.0, 256
OVERLOAD_POLICIES = ("fcfs", "round_robin", "vtc", "vtc_predicted", "vtc_oracle", OURS)
WEIGHTS = {"w1": 1.0, "w2": 2.0, "w3": 3.0, "w4": 4.0}
WEIGHTED_RATES, WEIGHTED_S, WEIGHTED_FROM_S = {"w1": 0.8, "w2": 0.8, "w3": 1.2, "w4": 1.6}, 300.0, 60.0
WEIGHTED_POLICIES = ("fcfs", "vtc", OURS)
QUIET_RATES, NOISY_RATE, NOISY_S = {f"quiet-{n}": 0.4 for n in range(4)}, 14.0, 180.0
"""The model runs about 3.5 such requests a second: the quiet ones want 45 % of it, the noisy one 20 times a fifth."""
NOISY_SIZES, NOISY_SEED = (32, 256), 1
NOISY_POLICIES = ("fcfs", "round_robin", "rate_limit_30", "vtc", "vtc_oracle", OURS, OURS_LIMITED)

Figures = dict[str, Any]


def makers(weights: Mapping[str, float] | None = None) -> dict[str, Callable[[], Policy]]:
    """Every policy by name, ours included."""
    return {**rivals(weights), OURS: lambda: Ours(weights), OURS_LIMITED: lambda: Ours(weights, MAX_CONCURRENT)}


def moved(requests: list[Request], repetition: int) -> list[Request]:
    """The load of a repetition; repetition 0 is the load as it is."""
    if repetition == 0:
        return requests
    rng = random.Random(repetition)
    later = [replace(r, arrived_at_s=r.arrived_at_s + rng.uniform(0, ARENA_MOVED_S)) for r in requests]
    return sorted(later, key=lambda r: r.arrived_at_s)


def arena_runs(folder: Path, repetitions: int) -> Iterator[tuple[int, str, Figures]]:
    """(repetition, policy, figures)"""
    recorded = arena(folder)
    for repetition in range(repetitions):
        requests = moved(recorded, repetition)
        for name, make in makers().items():
            if name != OURS_LIMITED and (repetition == 0 or name in PAIRED):
                yield repetition, name, arena_figures(requests, EngineModel(make()).run(requests), repetition == 0)


def arena_figures(requests: list[Request], course: Course, with_series: bool) -> Figures:
    """`with_series`: what the plots need as well."""
    difference = metrics.windowed_difference(course.served, requests, ARENA_S)
    tenants = sorted({r.tenant for r in requests})
    ttfts = {tenant: metrics.ttfts_s(course.served, [tenant]) for tenant in tenants}
    p99s = [percentile(values, 99) for values in ttfts.values() if values]
    figures: Figures = {
        "difference_max": difference.max, "difference_mean": difference.mean, "difference_var": difference.variance,
        "jain": metrics.jain_of_shares(course.served, requests, ARENA_S), "tokens_per_s": course.tokens_per_s,
        "served": len(course.served), "refused": len(course.refused),
        "ttft_mean_s": fmean(metrics.ttfts_s(course.served)),
        "ttft_p99_s_median_tenant": median(p99s), "ttft_p99_s_worst_tenant": max(p99s),
    }  # fmt: skip
    if with_series:
        got = metrics.service_between(course.served, 0.0, ARENA_S)
        asked = {tenant: sum(r.service for r in requests if r.tenant == tenant) for tenant in tenants}
        figures["window_starts_s"] = [round(at_s, 1) for at_s in difference.starts_s]
        figures["window_differences"] = [round(value, 1) for value in difference.values]
        figures["service_by_tenant"] = {tenant: round(got.get(tenant, 0.0)) for tenant in tenants}
        figures["asked_by_tenant"] = {tenant: round(asked[tenant]) for tenant in tenants}
    return figures


def overload_runs() -> Iterator[tuple[str, Figures]]:
    requests = steady(OVERLOAD_RATES, OVERLOAD_S, SIZE, SIZE)
    for name in OVERLOAD_POLICIES:
        course = EngineModel(makers()[name]()).run(requests)
        # Both tenants wait from the end of the warm-up to the end of the arrivals, so the gap means something.
        ends = [metrics.WARM_UP_S + 10.0 * tick for tick in range(1, int((OVERLOAD_S - metrics.WARM_UP_S) / 10) + 1)]
        gaps = [metrics.accumulated_gap(course.served, OVERLOAD_RATES, metrics.WARM_UP_S, end) for end in ends]
        yield (
            name,
            {
                "gap": gaps[-1],
                "gap_max": max(gaps),
                "jain": metrics.jain_of_shares(course.served, requests, OVERLOAD_S),
                "tokens_per_s": course.tokens_per_s,
            },
        )


def weights_runs() -> Iterator[tuple[str, Figures]]:
    requests = steady(WEIGHTED_RATES, WEIGHTED_S, SIZE, SIZE)
    for name in WEIGHTED_POLICIES:
        course = EngineModel(makers(WEIGHTS)[name]()).run(requests)
        shares = metrics.shares(course.served, WEIGHTED_FROM_S, WEIGHTED_S)
        total = sum(WEIGHTS.values())
        yield (
            name,
            {
                "shares": {tenant: round(share, 4) for tenant, share in shares.items()},
                "share_error_max": max(abs(shares[t] / (weight / total) - 1) for t, weight in WEIGHTS.items()),
                "jain": metrics.jain_of_shares(course.served, requests, WEIGHTED_S, WEIGHTS),
                "tokens_per_s": course.tokens_per_s,
            },
        )


def noisy_runs() -> Iterator[tuple[str, Figures]]:
    alone, beside = (
        poisson(rates, NOISY_S, NOISY_SIZES, NOISY_SIZES, NOISY_SEED)
        for rates in (QUIET_RATES, {**QUIET_RATES, "noisy": NOISY_RATE})
    )
    for name in NOISY_POLICIES:
        without = metrics.ttfts_s(EngineModel(makers()[name]()).run(alone).served, QUIET_RATES)
        course = EngineModel(makers()[name]()).run(beside)
        with_noise = metrics.ttfts_s(course.served, QUIET_RATES)
        yield name, {
            "quiet_ttft_p50_s": percentile(with_noise, 50), "quiet_ttft_p99_s": percentile(with_noise, 99),
            "quiet_ttft_p50_s_alone": percentile(without, 50), "quiet_ttft_p99_s_alone": percentile(without, 99),
            "quiet_served": len(with_noise), "quiet_requests": len(without),
            "served": len(course.served), "refused": len(course.refused), "tokens_per_s": course.tokens_per_s,
        }  # fmt: skip

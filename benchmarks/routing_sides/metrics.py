"""Figures of one run. Owns: their formulas. Must not know: which router it was.

Requests that came before the load's `counted_from_s` warm the caches and are not counted.

- hit rate: cached prompt tokens / prompt tokens.
- ceiling: the hit rate of one cache as large as all of them together, given the run's requests in the order in which
  they came, each of them computed before the next (so nobody misses what is still being computed).
- imbalance: prompt tokens prefilled by the busiest replica over the mean of all, the whole run.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from benchmarks.report import percentile
from benchmarks.routing_sides.engine_model import Engine, ReplicaModel, Served
from benchmarks.routing_sides.prefix_cache import PrefixCache
from benchmarks.routing_sides.workload import Load


def figures(load: Load, served: Sequence[Served], engine: Engine, replicas: Sequence[ReplicaModel]) -> dict[str, float]:
    counted = [s for s in served if s.arrived_at_s >= load.counted_from_s]
    ttfts = [s.ttft_s for s in counted]
    hit = _hit_rate(counted)
    most = ceiling(load, served, engine.cache_tokens * len(replicas))
    prefilled = [replica.prefilled_tokens for replica in replicas]
    return {
        "requests": len(counted),
        "hit_rate": hit,
        "ceiling": most,
        "hit_rate_of_ceiling": hit / most if most else 1.0,
        "ttft_p50_s": percentile(ttfts, 50),
        "ttft_p95_s": percentile(ttfts, 95),
        "ttft_p99_s": percentile(ttfts, 99),
        "ttft_mean_s": fmean(ttfts),
        "e2e_mean_s": fmean(s.finished_at_s - s.arrived_at_s for s in counted),
        "imbalance": max(prefilled) / fmean(prefilled),
    }


def ceiling(load: Load, served: Sequence[Served], cache_tokens: int) -> float:
    cache = PrefixCache(cache_tokens // load.block_tokens)
    cached = prompts = 0
    for one in sorted(served, key=lambda s: (s.arrived_at_s, s.request.number)):
        request = one.request
        if one.arrived_at_s >= load.counted_from_s:
            cached += min(cache.matched(request.blocks) * load.block_tokens, request.prompt_tokens - 1)
            prompts += request.prompt_tokens
        cache.keep(request.blocks + request.answer_blocks)
    return cached / prompts


def _hit_rate(served: Sequence[Served]) -> float:
    return sum(s.cached_tokens for s in served) / sum(s.request.prompt_tokens for s in served)

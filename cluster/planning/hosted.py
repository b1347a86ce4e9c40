"""Role: own replicas against an API that is paid by the token. Owns: the break-even. Must not know: whose prices.

What the replicas could do in an hour is `replicas x highest rate x 3600` requests, which the API would sell for that
many times the price of one. Own replicas cost the same however few requests come, so they win from the share

    break-even = own price an hour / (price of one request there x requests an hour at full use).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cluster.config import TokenPrices
from cluster.planning.load import Bucket, mean
from cluster.planning.results import Candidate, HostedComparison


def request_usd(prices: TokenPrices, buckets: Sequence[Bucket], *, cached: bool) -> float:
    """One request on average. `cached`: the API finds the same prefixes again as we do."""
    each = [
        prices.usd(
            round(b.uncached_tokens if cached else b.prompt_tokens),
            round(b.cached_tokens if cached else 0),
            round(b.output_tokens),
        )
        for b in buckets
    ]
    return mean(buckets, each)


def compare(
    chosen: Candidate, buckets: Sequence[Bucket], requests_per_s: float, hosted: Mapping[str, TokenPrices]
) -> tuple[HostedComparison, ...]:
    """Each API against the chosen candidate, the cheapest API first."""
    found = []
    for name, prices in hosted.items():
        usd = request_usd(prices, buckets, cached=prices.cached_input is not None)
        at_full_use = usd * chosen.requests_per_s * chosen.replicas * 3600
        there = usd * requests_per_s * 3600
        share = chosen.usd_per_hour / at_full_use if at_full_use else math.inf
        found.append(HostedComparison(name, there, share, "self" if chosen.usd_per_hour < there else "hosted"))
    return tuple(sorted(found, key=lambda item: item.usd_per_hour))

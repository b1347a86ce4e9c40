"""A distribution in a few hundred bytes: counts in buckets of equal ratio.

Role: latencies and lengths of any number of rows, with quantiles. Must not know: what is measured.

Bucket i holds values in (2^((i-1)/8), 2^(i/8)], so a quantile is off by at most 9 %; values outside 2^-10 .. 2^24 (a
millisecond to half a year, or 16 million tokens) go to the outermost buckets, hence at most 273 of them. Minimum,
maximum, mean and the sum of squares are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

PER_DOUBLING = 8
_LOWEST, _HIGHEST = -10 * PER_DOUBLING, 24 * PER_DOUBLING
QUANTILES = (0.5, 0.9, 0.99)


@dataclass
class Histogram:
    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    min: float = math.inf
    max: float = -math.inf
    buckets: dict[int, int] = field(default_factory=dict)

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.squares += value * value
        self.min = min(self.min, value)
        self.max = max(self.max, value)
        bucket = bucket_of(value)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1

    def plus(self, other: Histogram) -> Histogram:
        return Histogram(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            min(self.min, other.min),
            max(self.max, other.max),
            {b: self.buckets.get(b, 0) + other.buckets.get(b, 0) for b in self.buckets | other.buckets},
        )

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """The value that `share` of all values do not exceed; interpolated inside its bucket. None when empty."""
        if not self.count:
            return None
        wanted, below = share * self.count, 0
        for bucket in sorted(self.buckets):
            inside = self.buckets[bucket]
            if below + inside >= wanted:
                low, high = edges(bucket)
                value = low * (high / low) ** ((wanted - below) / inside)
                return min(max(value, self.min), self.max)
            below += inside
        return self.max

    def as_json(self) -> dict[str, Any]:
        """`{"count", "min", "mean", "p50", "p90", "p99", "max"}`; all but the count None when empty."""
        quantiles = {f"p{share * 100:g}": self.quantile(share) for share in QUANTILES}
        low, high = (self.min, self.max) if self.count else (None, None)
        values = {"min": low, "mean": self.mean, **quantiles, "max": high}
        return {"count": self.count} | {k: None if v is None else round(v, 4) for k, v in values.items()}


def bucket_of(value: float) -> int:
    if value <= 0:
        return _LOWEST
    return min(max(math.ceil(round(math.log2(value) * PER_DOUBLING, 9)), _LOWEST), _HIGHEST)


def edges(bucket: int) -> tuple[float, float]:
    """Where a bucket begins and ends."""
    return 2.0 ** ((bucket - 1) / PER_DOUBLING), 2.0 ** (bucket / PER_DOUBLING)

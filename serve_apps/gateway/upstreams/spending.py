"""Dollars paid to upstreams today, as one gateway process knows them: what the store has, what it may not have yet,
and what running requests may come to.

A request goes to an upstream only if its estimate (prompt and the whole of its `max_tokens`) still fits. So one gateway
overruns a budget by no more than its estimates are wrong; several also by what the others let in between two readings.

Owns: those sums. Must not know: the store, prices, the wall clock.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping

LEDGER_LAG_S = 2.0
"""How long after its end a request may be missing in the store: the ledger writes twice a second."""
_Sums = defaultdict[tuple[str, str | None], float]
"""By upstream and tenant; None: all tenants."""


class UpstreamSpending:
    """Times are of one clock that never goes back."""

    def __init__(self) -> None:
        self._stored: _Sums = defaultdict(float)
        self._fresh: _Sums = defaultdict(float)
        self._reserved: _Sums = defaultdict(float)
        self._ended: deque[tuple[float, str, str, float]] = deque()
        """What `_fresh` sums, in order of time."""

    def take(self, stored: Mapping[tuple[str, str], float], read_at_s: float) -> None:
        """What the store says of today, by upstream and tenant."""
        self._stored = defaultdict(float)
        for (upstream, tenant), usd in stored.items():
            _add(self._stored, upstream, tenant, usd)
        while self._ended and self._ended[0][0] < read_at_s - LEDGER_LAG_S:
            _, upstream, tenant, usd = self._ended.popleft()
            _add(self._fresh, upstream, tenant, -usd)

    def usd(self, upstream: str, tenant: str | None = None) -> float:
        """Spent and reserved."""
        return sum(sums.get((upstream, tenant), 0.0) for sums in (self._stored, self._fresh, self._reserved))

    def reserve(self, upstream: str, tenant: str, usd: float) -> None:
        """A request begins that may come to so much."""
        _add(self._reserved, upstream, tenant, usd)

    def settle(self, upstream: str, tenant: str, reserved_usd: float, usd: float, now_s: float) -> None:
        """It has ended, and came to `usd`."""
        _add(self._reserved, upstream, tenant, -reserved_usd)
        _add(self._fresh, upstream, tenant, usd)
        self._ended.append((now_s, upstream, tenant, usd))


def _add(sums: _Sums, upstream: str, tenant: str, usd: float) -> None:
    sums[upstream, tenant] += usd
    sums[upstream, None] += usd

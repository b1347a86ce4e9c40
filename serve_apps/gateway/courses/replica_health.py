"""What one gateway process remembers about the replicas of one model: who fails, and how much was tried again.

Owns: the wall between the pure policies and the clock. Must not know: requests.
"""

from __future__ import annotations

import time

from cluster.config import TribesConfig
from serve_apps.gateway.courses.breakers import Breakers
from serve_apps.gateway.courses.retry_budget import RetryBudget

HEDGE_FLOOR_PER_S = 0.1
"""One hedge in ten seconds is always allowed: an idle gateway has too few requests for a share of them to be one."""


class ReplicaHealth:
    """Breakers, the budget of retries and the budget of hedges."""

    def __init__(self, config: TribesConfig) -> None:
        gateway = config.gateway
        self.breakers = Breakers(gateway.breaker.failures, gateway.breaker.open_s, gateway.breaker.max_open_s)
        self.retries = RetryBudget(gateway.retries.share, gateway.retries.floor_per_s)
        self._hedges = RetryBudget(gateway.hedge.max_share, HEDGE_FLOOR_PER_S) if gateway.hedge else None

    def started(self) -> None:
        self.retries.started()
        if self._hedges is not None:
            self._hedges.started()

    def ended(self) -> None:
        now_s = time.monotonic()
        self.retries.ended(now_s)
        if self._hedges is not None:
            self._hedges.ended(now_s)

    def may_retry(self, begun: bool) -> bool:
        return self.retries.allows(time.monotonic(), begun=begun)

    def may_hedge(self) -> bool:
        return self._hedges is not None and self._hedges.allows(time.monotonic())

    def patience_s(self) -> float:
        return self.retries.patience_s(time.monotonic())

    def open_replicas(self) -> tuple[str, ...]:
        return self.breakers.open(time.monotonic())

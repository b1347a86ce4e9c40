"""What one gateway process remembers about the replicas of one model: who fails, and how much was tried again.

Tells what happens, for the metrics:

    retry, continuation, hedge    one more was allowed: a request anew, a stream that goes on, a second replica
    ..._refused                   the budget did not allow it
    hedge_won                     the second replica was the first to begin
    breaker_opened                a replica is avoided for a while

Owns: the wall between the pure policies and the clock. Must not know: requests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from cluster.config import TribesConfig
from serve_apps.gateway.courses.breakers import Breakers
from serve_apps.gateway.courses.retry_budget import RetryBudget

HEDGE_FLOOR_PER_S = 0.1
"""One hedge in ten seconds is always allowed: an idle gateway has too few requests for a share of them to be one."""
log = logging.getLogger(__name__)

Happened = Callable[[str, str], None]
"""Takes the model and the event."""


def untold(model: str, event: str) -> None:
    """For whoever counts nothing."""


class ReplicaHealth:
    """Breakers, the budget of retries and the budget of hedges."""

    def __init__(self, config: TribesConfig, model: str, happened: Happened) -> None:
        gateway, breaker = config.gateway, config.gateway.breaker
        self._model = model
        self._happened = happened
        self.breakers = Breakers(breaker.failures, breaker.open_s, breaker.max_open_s, self._opened)
        self._retries = RetryBudget(gateway.retries.share, gateway.retries.floor_per_s)
        self._hedges = RetryBudget(gateway.hedge.max_share, HEDGE_FLOOR_PER_S) if gateway.hedge else None

    def started(self) -> None:
        self._retries.started()
        if self._hedges is not None:
            self._hedges.started()

    def ended(self) -> None:
        now_s = time.monotonic()
        self._retries.ended(now_s)
        if self._hedges is not None:
            self._hedges.ended(now_s)

    def may_retry(self, begun: bool) -> bool:
        allowed = self._retries.allows(time.monotonic(), begun=begun)
        return self._told("continuation" if begun else "retry", allowed)

    def may_hedge(self) -> bool:
        return self._told("hedge", self._hedges is not None and self._hedges.allows(time.monotonic()))

    def hedge_won(self) -> None:
        self._happened(self._model, "hedge_won")

    def patience_s(self) -> float:
        return self._retries.patience_s(time.monotonic())

    def open_replicas(self) -> tuple[str, ...]:
        return self.breakers.open(time.monotonic())

    def _told(self, what: str, allowed: bool) -> bool:
        self._happened(self._model, what if allowed else f"{what}_refused")
        return allowed

    def _opened(self, replica_id: str, open_for_s: float) -> None:
        log.warning("replica %s fails request after request: avoided for %g s", replica_id, open_for_s)
        self._happened(self._model, "breaker_opened")

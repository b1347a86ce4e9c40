"""Tenants as the queue needs them, read from the state store again and again: weights, limits, spending of the day.

Owns: what was read last. Must not know: who waits, Ray. Its loop is apart from the dispatcher's tick: a store that is
slow or away must not keep tickets from expiring.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple
from typing import Any

from cluster.scheduling import RequestQueue, ServiceWeights, TenantLimits, TenantPolicy
from cluster.state import Store

REFRESH_S = 2.0
SPENDING_REFRESH_S = 5.0
FIRST_READ_S = 1.0
log = logging.getLogger(__name__)


class TenantFeed:
    """Keeps a queue's tenants as the store has them."""

    def __init__(self, store: Store, queue: RequestQueue, weights: ServiceWeights) -> None:
        self.weights = weights
        """By which the store splits costs among tenants."""
        self._store = store
        self._queue = queue
        self._known: dict[str, Mapping[str, Any]] = {}
        self._with_budget: set[str] = set()
        self._spending_read_at_s = -SPENDING_REFRESH_S
        self.limited: frozenset[str] | None = None
        """Tenants with any limit: each of their requests is decided centrally. None until the store was read."""

    def read_now(self) -> None:
        """The first reading, before the first request is decided. It blocks, for at most `FIRST_READ_S`: a store that
        hangs must not keep requests of tenants without limits waiting."""
        read: list[Mapping[str, Mapping[str, Any]]] = []

        def run() -> None:
            try:
                read.append(self._store.tenants())
            except Exception as error:
                log.warning("cannot read the tenants (%s); their limits hold once the store answers", error)

        # Not one of a pool: those are waited for when the process ends.
        reader = threading.Thread(target=run, daemon=True)
        reader.start()
        reader.join(FIRST_READ_S)
        if read:
            self.take(read[0])
        elif reader.is_alive():
            log.warning("the store does not answer; limits of tenants hold once it does")

    async def run_forever(self, changed: Callable[[], None]) -> None:
        """Bounded waits only; a refresh that fails is logged and tried again."""
        while True:
            try:
                await self.refresh()
                changed()
            except Exception as error:
                log.warning("cannot read the tenants (%s); trying again", error)
            await asyncio.sleep(REFRESH_S)

    async def refresh(self) -> None:
        self.take(await asyncio.to_thread(self._store.tenants))
        if self._with_budget and time.monotonic() - self._spending_read_at_s >= SPENDING_REFRESH_S:
            self._spending_read_at_s = time.monotonic()
            now_s = time.time()
            spent = await asyncio.to_thread(self._store.spent_today, now_s, self.weights)
            for tenant in self._with_budget & spent.keys():
                self._queue.set_spent(tenant, spent[tenant].tokens, spent[tenant].usd, now_s)

    def take(self, stored: Mapping[str, Mapping[str, Any]]) -> None:
        now_s = time.time()
        limited = set(self.limited or ())
        for name, policy in stored.items():
            if self._known.get(name) == policy:
                continue  # thousands of tenants, of which hardly any changes
            try:
                self._take_one(name, policy, limited, now_s)
            except Exception as error:  # whatever is wrong with one, the others must have theirs
                log.warning("tenant %r keeps its former weight and limits: %s; correct %s", name, error, policy)
            else:
                self._known[name] = policy
        if limited != self.limited:
            self.limited = frozenset(limited)

    def _take_one(self, name: str, policy: Mapping[str, Any], limited: set[str], now_s: float) -> None:
        limits = TenantLimits(**policy.get("limits", {}))
        self._queue.set_tenant(name, TenantPolicy(policy.get("weight", 1.0), limits), now_s)
        has_limits = any(limit is not None for limit in astuple(limits))
        (limited.add if has_limits else limited.discard)(name)
        has_budget = limits.tokens_per_day is not None or limits.usd_per_day is not None
        (self._with_budget.add if has_budget else self._with_budget.discard)(name)

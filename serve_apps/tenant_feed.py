"""Tenants as the queue needs them, read from the state store again and again: weights, limits, spending of the day.

Owns: what was read last. Must not know: who waits, Ray. Its loop is apart from the dispatcher's tick: a store that is
slow or away must not keep tickets from expiring.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple
from typing import Any

from cluster.scheduling import RequestQueue, TenantLimits, TenantPolicy
from cluster.state import Store

REFRESH_S = 2.0
SPENDING_REFRESH_S = 5.0
log = logging.getLogger(__name__)


class TenantFeed:
    """Keeps a queue's tenants as the store has them."""

    def __init__(self, store: Store, queue: RequestQueue) -> None:
        self._store = store
        self._queue = queue
        self._known: dict[str, Mapping[str, Any]] = {}
        self._with_budget: set[str] = set()
        self._spending_read_at_s = -SPENDING_REFRESH_S
        self.limited: frozenset[str] = frozenset()
        """Tenants with any limit: each of their requests is decided centrally."""

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
            spent = await asyncio.to_thread(self._store.spent_today, now_s)
            for tenant in self._with_budget & spent.keys():
                self._queue.set_spent(tenant, spent[tenant].tokens, spent[tenant].usd, now_s)

    def take(self, stored: Mapping[str, Mapping[str, Any]]) -> None:
        now_s = time.time()
        limited = set(self.limited)
        for name, policy in stored.items():
            if self._known.get(name) == policy:
                continue  # thousands of tenants, of which hardly any changes
            self._known[name] = policy
            limits = TenantLimits(**policy.get("limits", {}))
            self._queue.set_tenant(name, TenantPolicy(policy.get("weight", 1.0), limits), now_s)
            has_limits = any(limit is not None for limit in astuple(limits))
            (limited.add if has_limits else limited.discard)(name)
            has_budget = limits.tokens_per_day is not None or limits.usd_per_day is not None
            (self._with_budget.add if has_budget else self._with_budget.discard)(name)
        if limited != self.limited:
            self.limited = frozenset(limited)

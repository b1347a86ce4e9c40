"""Who may still spend what at upstreams: budgets in dollars, and tenants' own limits.

The queue's limits do not see these requests: one that it refused was never counted, one for a model without a queue
never came to it. So each gateway process holds tenants to their limits (requests and tokens a minute, requests at once,
budgets of the day) once more for what upstreams serve: at most the same again, and not at all without bounds.

The store is read when it is needed and was not read for `FRESH_S`. While it is away, what was read holds for
`TRUSTED_S`; after that nothing goes upstream. Owns: what was read, the accounts. Must not know: HTTP, queues.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.config import TenantUpstreamConfig, TribesConfig, UpstreamConfig
from cluster.scheduling import RateLimitState, Refusal, ServiceWeights, TenantLimits, TokenUsage
from cluster.scheduling.limits import DAY_S, TenantAccount
from cluster.state import Period, Spent, Store
from cluster.vocabulary import UPSTREAM_PREFIX
from serve_apps.gateway.request import GenerationRequest
from serve_apps.gateway.upstreams.spending import UpstreamSpending

FRESH_S = 5.0
TRUSTED_S = 60.0
READ_TIMEOUT_S = 5.0
BUSY_RETRY_S = 1.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """What the store said."""

    upstream_usd: Mapping[tuple[str, str], float]
    """Of today, by upstream and tenant."""
    spent: Mapping[str, Spent]
    limits: Mapping[str, TenantLimits]
    """Of tenants that have any."""


@dataclass(frozen=True, slots=True)
class Stake:
    """A request that runs upstream, as it was counted when it began."""

    upstream: str
    tenant: str
    usd: float
    tokens: int


class UpstreamBooks:
    """The budgets and limits of one gateway process."""

    def __init__(self, store: Store, config: TribesConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._weights = ServiceWeights(config.scheduling.input_weight, config.scheduling.output_weight)
        self._clock = clock
        self._tried_at_s = self._read_at_s = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self.spending = UpstreamSpending()
        self._accounts: dict[str, TenantAccount] = {}

    async def look(self) -> None:
        """Read the store if that was not tried for a while. Others that ask meanwhile wait for the same reading, all of
        them up to `READ_TIMEOUT_S` after it began: a store that hangs does not hold up each request anew.
        """
        now_s = self._clock()
        if self._reading is None or self._reading.done():
            if now_s - self._tried_at_s <= FRESH_S:
                return
            self._tried_at_s = now_s
            self._reading = asyncio.create_task(self._read(now_s))
        left_s = self._tried_at_s + READ_TIMEOUT_S - now_s
        if left_s <= 0:
            return
        try:
            async with asyncio.timeout(left_s):
                await asyncio.shield(self._reading)
        except TimeoutError:
            log.warning("the store is slow: upstreams go by what it said before")

    def refusal(
        self, name: str, upstream: UpstreamConfig, own: TenantUpstreamConfig, tenant: str, request: GenerationRequest
    ) -> Refusal | None:
        """Why the tenant's request may not go to this upstream now."""
        if self._clock() - self._read_at_s > TRUSTED_S:
            message = "the state store is away, and with it the budgets of upstreams"
            return Refusal("", 503, "store_unavailable", message, BUSY_RETRY_S)
        usd = estimate_usd(upstream, request)
        to_midnight_s = DAY_S - time.time() % DAY_S
        if upstream.usd_per_day is not None and self.spending.usd(name) + usd > upstream.usd_per_day:
            message = f"the budget of upstream {name!r} for today (usd_per_day) leaves no room for this request"
            return Refusal("", 503, "upstream_budget_spent", message, to_midnight_s)
        if own.usd_per_day is not None and self.spending.usd(name, tenant) + usd > own.usd_per_day:
            message = f"tenant {tenant!r} has no room for this request in its budget of today at upstream {name!r}"
            return Refusal("", 429, "insufficient_quota", message, to_midnight_s)
        return self._over_limits(tenant, request)

    def _over_limits(self, tenant: str, request: GenerationRequest) -> Refusal | None:
        account = self._accounts.get(tenant)
        if account is None:
            return None
        now_s = time.time()
        limits = account.rate_limits(now_s)
        if budget := account.exhausted(now_s):
            message = f"tenant {tenant!r} has used up its budget of today (limits.{budget}); raise it or wait"
            return Refusal("", 429, "insufficient_quota", message, DAY_S - now_s % DAY_S, limits)
        wait_s, limit = account.rate_wait_s(_tokens(request), now_s)
        if wait_s > 0:
            message = f"tenant {tenant!r} is over its {limit} limit"
            return Refusal("", 429, "rate_limit_exceeded", message, max(BUSY_RETRY_S, wait_s), limits)
        if not account.may_run:
            message = f"tenant {tenant!r} already has {account.running} requests at upstreams, its limit"
            return Refusal("", 429, "rate_limit_exceeded", message, BUSY_RETRY_S, limits)
        return None

    def rate_limits(self, tenant: str) -> RateLimitState | None:
        account = self._accounts.get(tenant)
        return account.rate_limits(time.time()) if account is not None else None

    def begin(self, name: str, upstream: UpstreamConfig, tenant: str, request: GenerationRequest) -> Stake:
        """The request goes there now."""
        stake = Stake(name, tenant, estimate_usd(upstream, request), _tokens(request))
        self.spending.reserve(name, tenant, stake.usd)
        if (account := self._accounts.get(tenant)) is not None:
            account.running += 1
            account.take(stake.tokens, time.time())
        return stake

    def end(self, stake: Stake, usage: TokenUsage | None, usd: float) -> None:
        """It is over; `usage` None: nothing was served."""
        self.spending.settle(stake.upstream, stake.tenant, stake.usd, usd, self._clock())
        if (account := self._accounts.get(stake.tenant)) is None:
            return
        now_s = time.time()
        account.running = max(0, account.running - 1)  # its limits may have come while this ran
        used = usage.prompt_tokens + usage.output_tokens if usage is not None else 0
        account.take(used - stake.tokens, now_s, requests=0 if usage is not None else -1)
        account.spend(used, now_s)
        account.spent_usd += usd

    async def _read(self, began_at_s: float) -> None:
        try:
            self._take(await asyncio.to_thread(read_books, self._store, self._weights, time.time()), began_at_s)
        except Exception as error:
            log.warning("cannot read budgets (%s); upstreams go by what was read before", type(error).__name__)

    def _take(self, reading: Reading, read_at_s: float) -> None:
        now_s = time.time()
        self.spending.take(reading.upstream_usd, read_at_s)
        self._read_at_s = read_at_s
        for tenant in self._accounts.keys() - reading.limits.keys():
            del self._accounts[tenant]
        for tenant, limits in reading.limits.items():
            account = self._accounts.get(tenant)
            if account is None:
                account = self._accounts[tenant] = TenantAccount(limits, now_s)
            elif account.limits != limits:
                account.apply(limits, now_s)
            spent = reading.spent.get(tenant, Spent(0, 0.0))
            account.set_spent(spent.tokens, spent.usd, now_s)


def read_books(store: Store, weights: ServiceWeights, now_s: float) -> Reading:
    """Blocks. Costs come only where a tenant has a budget in them: the other sums are cheap."""
    limits: dict[str, TenantLimits] = {}
    for tenant, policy in store.tenants().items():
        if found := _limits(tenant, policy):
            limits[tenant] = found
    has_budget = any(item.tokens_per_day is not None or item.usd_per_day is not None for item in limits.values())
    today = Period(int(now_s // DAY_S) * DAY_S)
    paid = store.usage_sums(today, ("deployment", "tenant"))
    return Reading(
        {
            (r["deployment"].removeprefix(UPSTREAM_PREFIX), r["tenant"]): r["upstream_usd"]
            for r in paid
            if r["upstream_usd"]
        },
        store.spent_today(now_s, weights) if has_budget else {},
        limits,
    )


def _limits(tenant: str, policy: Mapping[str, Any]) -> TenantLimits | None:
    try:
        limits = TenantLimits(**policy.get("limits", {}))
    except TypeError as error:  # whatever is wrong with one tenant, the others must have theirs
        log.warning("tenant %r is held to no limits at upstreams: %s", tenant, error)
        return None
    return limits if limits != TenantLimits() else None


def estimate_usd(upstream: UpstreamConfig, request: GenerationRequest) -> float:
    """What the request may come to."""
    return upstream.usd_per_mtok.usd(request.prompt_tokens, 0, request.max_output_tokens)


def _tokens(request: GenerationRequest) -> int:
    return request.prompt_tokens + request.max_output_tokens

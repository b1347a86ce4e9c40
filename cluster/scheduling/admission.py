"""Admission: may this request wait, and if not, when is it worth trying again.

Refusals are computed from counts kept up to date, so refusing costs O(1). `Retry-After` is honest: for a rate limit the
time until the bucket has room, for a full queue the tenant's waiting service over the rate at which *its* work drains.

Owns: the tenants' accounts and drain rates. Must not know: order among tenants, replicas, HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping

from cluster.scheduling.limits import TenantAccount
from cluster.scheduling.rates import RateMeter
from cluster.scheduling.types import ClassPolicy, Refusal, TenantLimits, Ticket, TokenUsage
from cluster.vocabulary import RequestClass

MIN_RETRY_S = 1.0
MAX_RETRY_S = 600.0
UNKNOWN_RATE_RETRY_S = 5.0
"""Answer while a tenant's drain rate is not known yet (nothing of it has run)."""


class Admission:
    """Bounds and limits over all tenants and classes of one model."""

    def __init__(self, classes: Mapping[RequestClass, ClassPolicy]) -> None:
        self._classes = dict(classes)
        self._limits: dict[str, TenantLimits] = {}
        self._accounts: dict[str, TenantAccount] = {}
        self._drain: dict[str, RateMeter] = {}
        self._backlog: dict[str, float] = {}

    def max_wait_s(self, request_class: RequestClass) -> float:
        return self._classes[request_class].max_wait_s

    def set_limits(self, tenant: str, limits: TenantLimits, now_s: float) -> None:
        if self._limits.get(tenant) == limits:
            return
        self._limits[tenant] = limits
        old = self._accounts.get(tenant)
        account = self._accounts[tenant] = TenantAccount(limits, now_s)
        if old is not None:
            account.running, account.queued = old.running, old.queued

    def account(self, tenant: str, now_s: float) -> TenantAccount:
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = TenantAccount(self._limits.get(tenant, TenantLimits()), now_s)
        return account

    def check(self, ticket: Ticket, class_queued: int, must_wait: bool, now_s: float) -> Refusal | None:
        """None when the ticket may come in; nothing is counted yet."""
        account = self.account(ticket.tenant, now_s)
        wait_s, limit = account.rate_wait_s(ticket.prompt_tokens + ticket.max_output_tokens, now_s)
        if wait_s > 0:
            message = f"tenant {ticket.tenant!r} is over its {limit} limit"
            return Refusal(ticket.ticket_id, 429, "rate_limit_exceeded", message, _clamp(wait_s))
        if not must_wait and account.may_run:
            return None
        if not account.may_queue:
            message = f"tenant {ticket.tenant!r} already has {account.queued} requests waiting, its limit"
            return Refusal(
                ticket.ticket_id, 429, "tenant_queue_full", message, self.retry_after_s(ticket.tenant, now_s)
            )
        if class_queued >= self._classes[ticket.request_class].max_queued:
            message = f"the {ticket.request_class} queue is full ({class_queued} requests waiting)"
            return Refusal(ticket.ticket_id, 429, "queue_full", message, self.retry_after_s(ticket.tenant, now_s))
        return None

    def unserved(self, ticket: Ticket) -> Refusal:
        message = f"no deployment serves the class {ticket.request_class}"
        return Refusal(ticket.ticket_id, 503, "class_not_served", message)

    def expired(self, ticket: Ticket, now_s: float) -> Refusal:
        message = f"no replica became free within {now_s - ticket.arrived_at_s:.0f} s"
        return Refusal(ticket.ticket_id, 503, "queue_timeout", message, self.retry_after_s(ticket.tenant, now_s))

    def retry_after_s(self, tenant: str, now_s: float) -> float:
        """Seconds until the tenant's waiting work has drained at its present rate."""
        meter = self._drain.get(tenant)
        rate = meter.rate(now_s) if meter else 0.0
        if rate <= 0:
            return UNKNOWN_RATE_RETRY_S
        return _clamp(self._backlog.get(tenant, 0.0) / rate)

    def enqueued(self, ticket: Ticket, now_s: float) -> None:
        self.account(ticket.tenant, now_s).take(_tokens(ticket), now_s)
        self.restored(ticket, now_s)

    def restored(self, ticket: Ticket, now_s: float) -> None:
        self.account(ticket.tenant, now_s).queued += 1
        self._backlog[ticket.tenant] = self._backlog.get(ticket.tenant, 0.0) + _tokens(ticket)

    def left(self, ticket: Ticket, now_s: float) -> None:
        """The ticket no longer waits."""
        self.account(ticket.tenant, now_s).queued -= 1
        self._backlog[ticket.tenant] -= _tokens(ticket)

    def started(self, ticket: Ticket, now_s: float) -> None:
        self.left(ticket, now_s)
        self.account(ticket.tenant, now_s).running += 1
        self._drain.setdefault(ticket.tenant, RateMeter(tau_s=30)).add(_tokens(ticket), now_s)

    def finished(self, tenant: str, now_s: float) -> None:
        self.account(tenant, now_s).running -= 1

    def settle(self, ticket: Ticket, usage: TokenUsage, now_s: float) -> None:
        """Give back (or take) the difference between the tokens assumed at admission and those used."""
        difference = usage.prompt_tokens + usage.output_tokens - _tokens(ticket)
        self.account(ticket.tenant, now_s).take(difference, now_s, requests=0)


def _tokens(ticket: Ticket) -> int:
    return ticket.prompt_tokens + ticket.max_output_tokens


def _clamp(seconds: float) -> float:
    return min(MAX_RETRY_S, max(MIN_RETRY_S, seconds))

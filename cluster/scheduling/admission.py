"""Admission: may this request wait, and if not, when is it worth trying again.

Refusals are computed from counts kept up to date, so refusing costs O(1). `Retry-After` is honest: for a rate limit the
time until the bucket has room, for a budget the time to midnight UTC, for a full queue the tenant's waiting tokens over
the rate at which *its* work drains.

Owns: the tenants' accounts. Must not know: order among tenants, replicas, HTTP.
"""

from __future__ import annotations

from cluster.scheduling.limits import DAY_S, DRAIN_TAU_S, UNLIMITED, TenantAccount
from cluster.scheduling.types import RateLimitState, Refusal, TenantLimits, Ticket

MIN_RETRY_S = 1.0
MAX_RETRY_S = 600.0
UNKNOWN_RATE_RETRY_S = 5.0
"""Answer while a tenant's drain rate is not known (nothing of it has run, or not for long)."""


class Admission:
    """Limits and accounts over all tenants and classes of one model."""

    def __init__(self) -> None:
        self._accounts: dict[str, TenantAccount] = {}

    def set_limits(self, tenant: str, limits: TenantLimits, now_s: float) -> TenantAccount:
        account = self.account(tenant, now_s)
        if account.limits != limits:
            account.apply(limits, now_s)
        return account

    def account(self, tenant: str, now_s: float) -> TenantAccount:
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = TenantAccount(UNLIMITED, now_s)
        return account

    def set_spent(self, tenant: str, tokens: int, usd: float, now_s: float) -> None:
        self.account(tenant, now_s).set_spent(tokens, usd, now_s)

    def rate_limits(self, tenant: str, now_s: float) -> RateLimitState | None:
        account = self._accounts.get(tenant)
        return account.rate_limits(now_s) if account is not None else None

    def check(self, account: TenantAccount, ticket: Ticket, must_wait: bool, now_s: float) -> Refusal | None:
        """None when the tenant's own limits (its `account`) let the ticket in; nothing is counted yet."""
        budget = account.exhausted(now_s)
        if budget is not None:
            message = f"tenant {ticket.tenant!r} has used up its budget of today (limits.{budget}); raise it or wait"
            return self._refuse(ticket, 429, "insufficient_quota", message, DAY_S - now_s % DAY_S, now_s)
        wait_s, limit = account.rate_wait_s(ticket.limit_tokens, now_s)
        if wait_s > 0:
            message = f"tenant {ticket.tenant!r} is over its {limit} limit"
            return self._refuse(ticket, 429, "rate_limit_exceeded", message, _clamp(wait_s), now_s)
        if must_wait and not account.may_queue:
            message = f"tenant {ticket.tenant!r} already has {account.queued} requests waiting, its limit"
            retry_s = self.retry_after_s(ticket.tenant, now_s)
            return self._refuse(ticket, 429, "tenant_queue_full", message, retry_s, now_s)
        return None

    def queue_full(self, ticket: Ticket, waiting: int, which: str, now_s: float) -> Refusal:
        message = f"{which} is full ({waiting} requests waiting)"
        retry_s = self.retry_after_s(ticket.tenant, now_s)
        return self._refuse(ticket, 429, "queue_full", message, retry_s, now_s)

    def shed(self, ticket: Ticket, now_s: float) -> Refusal:
        message = "the queue is full and this request made room for one of a tenant that used less"
        return self._refuse(ticket, 503, "shed", message, self.retry_after_s(ticket.tenant, now_s), now_s)

    def unserved(self, ticket: Ticket) -> Refusal:
        message = f"no deployment serves the class {ticket.request_class}"
        return Refusal(ticket.ticket_id, 503, "class_not_served", message)

    def expired(self, ticket: Ticket, now_s: float) -> Refusal:
        message = f"no replica became free within {now_s - ticket.arrived_at_s:.0f} s"
        return self._refuse(ticket, 503, "queue_timeout", message, self.retry_after_s(ticket.tenant, now_s), now_s)

    def retry_after_s(self, tenant: str, now_s: float) -> float:
        """Seconds until the tenant's waiting work has drained at its present rate."""
        account = self._accounts.get(tenant)
        rate = account.drain.rate(now_s) if account is not None else 0.0
        # After a pause what is left of the rate says nothing about how fast the tenant's work will run now.
        if account is None or rate * DRAIN_TAU_S < 1.0:
            return UNKNOWN_RATE_RETRY_S
        return _clamp(account.backlog_tokens / rate)

    def _refuse(
        self, ticket: Ticket, status: int, code: str, message: str, retry_after_s: float, now_s: float
    ) -> Refusal:
        state = self.rate_limits(ticket.tenant, now_s)
        return Refusal(ticket.ticket_id, status, code, message, retry_after_s, state)


def _clamp(seconds: float) -> float:
    return min(MAX_RETRY_S, max(MIN_RETRY_S, seconds))

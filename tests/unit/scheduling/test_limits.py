"""Limits of a tenant: rates and their headers, daily budgets, retry times."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.scheduling import (
    ClassPolicy,
    Lease,
    RateLimitState,
    Refusal,
    Replica,
    RequestQueue,
    TenantLimits,
    TenantPolicy,
    Ticket,
    TokenUsage,
)
from cluster.scheduling.limits import DAY_S, TokenBucket
from cluster.vocabulary import RequestClass

ONLINE = RequestClass.ONLINE
NOON_S = 20_000 * DAY_S + DAY_S / 2


def make_queue(slots: int = 100, **limits: Any) -> RequestQueue:
    queue = RequestQueue({ONLINE: ClassPolicy(100, 100.0)})
    queue.put_replica(Replica("r", "d", (ONLINE,), slots), 0.0)
    queue.set_tenant("a", TenantPolicy(limits=TenantLimits(**limits)), 0.0)
    return queue


def ticket(number: int, at_s: float = 0.0, **fields: object) -> Ticket:
    return Ticket(f"t{number}", "g", "a", ONLINE, 10, 20, at_s, **fields)  # type: ignore[arg-type]


def refusal(queue: RequestQueue, number: int, now_s: float, **fields: object) -> Refusal:
    refused = queue.submit(ticket(number, now_s, **fields), now_s)
    assert refused is not None
    return refused


def test_rate_limit_state_counts_down_and_comes_back() -> None:
    queue = make_queue(requests_per_minute=60, tokens_per_minute=600)
    assert queue.rate_limits("a", 0.0) == RateLimitState(60, 60, 0.0, 600, 600, 0.0)
    assert queue.submit(ticket(1), 0.0) is None
    assert queue.rate_limits("a", 0.0) == RateLimitState(60, 59, 1.0, 600, 570, 3.0)
    assert queue.rate_limits("a", 1.0) == RateLimitState(60, 60, 0.0, 600, 580, 2.0)
    assert queue.rate_limits("unknown", 1.0) is None


def test_a_tenant_without_rate_limits_has_no_headers() -> None:
    assert make_queue(max_concurrent=1, tokens_per_day=5).rate_limits("a", 0.0) is None


def test_refusals_carry_the_state() -> None:
    queue = make_queue(requests_per_minute=1)
    assert queue.submit(ticket(1), 0.0) is None
    refused = refusal(queue, 2, 0.0)
    assert refused.rate_limits == RateLimitState(1, 0, 60.0)
    assert (refused.code, refused.retry_after_s) == ("rate_limit_exceeded", 60.0)


def test_the_token_limit_counts_what_the_ticket_says() -> None:
    queue = make_queue(tokens_per_minute=100)
    assert queue.submit(ticket(1, charged_tokens=90), 0.0) is None
    assert refusal(queue, 2, 0.0, charged_tokens=11).code == "rate_limit_exceeded"
    assert queue.submit(ticket(3, charged_tokens=10), 0.0) is None
    for lease in queue.grant(0.0):
        queue.release(lease.lease_id, TokenUsage(10, 0, 10), 0.0)
    state = queue.rate_limits("a", 0.0)
    assert state is not None and state.remaining_tokens == 60, "settled by what was used: 2 x 20"


@pytest.mark.parametrize(("limit", "spent"), [("tokens_per_day", (1000, 0.1)), ("usd_per_day", (10, 5.0))])
def test_a_spent_budget_refuses_until_midnight(limit: str, spent: tuple[int, float]) -> None:
    budget: dict[str, Any] = {limit: 1000 if limit == "tokens_per_day" else 5.0}
    queue = make_queue(**budget)
    queue.set_spent("a", spent[0] // 2, spent[1] / 2, NOON_S)
    assert queue.submit(ticket(1, NOON_S), NOON_S) is None
    queue.set_spent("a", *spent, NOON_S)
    refused = refusal(queue, 2, NOON_S + 60)
    assert (refused.status, refused.code, refused.retry_after_s) == (429, "insufficient_quota", DAY_S / 2 - 60)
    assert limit in refused.message
    assert queue.submit(ticket(3, NOON_S + DAY_S / 2), NOON_S + DAY_S / 2) is None, "a new day"


def test_tokens_count_before_the_next_report_of_the_sums() -> None:
    queue = make_queue(tokens_per_day=100)
    queue.set_spent("a", 70, 0.0, NOON_S)
    assert queue.submit(ticket(1, NOON_S), NOON_S) is None
    (lease,) = queue.grant(NOON_S)
    queue.release(lease.lease_id, TokenUsage(10, 0, 20), NOON_S)
    assert refusal(queue, 2, NOON_S).code == "insufficient_quota"
    queue.set_spent("a", 99, 0.0, NOON_S)
    assert queue.submit(ticket(3, NOON_S), NOON_S) is None, "the report replaces what was counted here"


def test_changed_limits_keep_what_runs_waits_and_was_spent() -> None:
    queue = make_queue(slots=1, max_concurrent=1, tokens_per_day=50)
    for number in range(3):
        queue.submit(ticket(number, NOON_S), NOON_S)
    queue.grant(NOON_S)
    queue.set_spent("a", 60, 0.0, NOON_S)
    queue.set_tenant("a", TenantPolicy(limits=TenantLimits(max_queued=2, tokens_per_day=50)), NOON_S)
    assert refusal(queue, 9, NOON_S).code == "insufficient_quota"
    queue.set_tenant("a", TenantPolicy(limits=TenantLimits(max_queued=2)), NOON_S)
    assert refusal(queue, 9, NOON_S).code == "tenant_queue_full"


def test_prepaid_use_counts_for_limits_and_holds_the_tenant() -> None:
    queue = make_queue(slots=3, max_concurrent=1, requests_per_minute=10)
    (slot,) = queue.prepay("g", 0.0, 1)
    lease = queue.use_prepaid(slot.lease_id, ticket(1), 0.0, 0.0)
    assert lease is not None and lease.replica_id == "r"
    state = queue.rate_limits("a", 0.0)
    assert state is not None and state.remaining_requests == 9
    assert queue.submit(ticket(2), 0.0) is None
    assert queue.grant(0.0) == []
    queue.release(lease.lease_id, TokenUsage(10, 0, 5), 1.0)
    assert len(queue.grant(1.0)) == 1


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=60))
def test_a_bucket_never_lets_more_than_its_rate_and_one_allowance_pass(asks: list[tuple[float, int]]) -> None:
    bucket, now_s, passed = TokenBucket(60, 0.0), 0.0, 0.0
    for wait_s, amount in asks:
        now_s += wait_s
        if bucket.wait_s(amount, now_s) == 0:
            bucket.take(amount, now_s)
            passed += amount
        assert passed <= 60 + now_s + 1e-6
        assert 0 <= bucket.remaining(now_s) <= 60 and bucket.full_in_s(now_s) >= 0


def remaining(queue: RequestQueue) -> tuple[int | None, int | None]:
    state = queue.rate_limits("a", 0.0)
    assert state is not None
    return state.remaining_requests, state.remaining_tokens


def test_what_never_ran_costs_nothing() -> None:
    queue = make_queue(slots=1, requests_per_minute=10, tokens_per_minute=600)
    for number in range(3):
        assert queue.submit(ticket(number), 0.0) is None
    (lease,) = queue.grant(0.0)
    assert remaining(queue) == (7, 510)
    queue.release(lease.lease_id, None, 0.0)
    assert queue.cancel("t1", 0.0)
    assert remaining(queue) == (9, 570)
    queue.expire(100.0)
    assert remaining(queue) == (10, 600)


def test_only_what_was_counted_comes_back() -> None:
    """After lost messages nobody knows what ran; after a restart the buckets have not counted what was brought back."""
    queue = make_queue(slots=1, requests_per_minute=10)
    for number in range(2):
        queue.submit(ticket(number), 0.0)
    queue.grant(0.0)
    queue.recovery.reconcile_owner("g", [], [], 0.0)
    assert remaining(queue) == (8, None)
    queue.recovery.restore([ticket(5), ticket(6)], [], 0.0)
    (lease,) = queue.grant(0.0)
    queue.release(lease.lease_id, None, 0.0)
    queue.cancel("t6", 0.0)
    assert remaining(queue) == (8, None)


def test_what_a_former_queue_had_counted_gives_nothing_back() -> None:
    """After a restart the buckets are full: what was assumed for a lease of before was not taken from them."""
    queue = make_queue(slots=2, tokens_per_minute=600)
    queue.recovery.restore([], [Lease("old", ticket(1, charged_tokens=10_000), "r", 0.0)], 0.0)
    assert queue.submit(ticket(2, charged_tokens=500), 0.0) is None
    queue.release("old", TokenUsage(10, 0, 20), 0.0)
    assert remaining(queue) == (None, 100)


def test_what_came_before_there_were_limits_gives_nothing_back() -> None:
    queue = make_queue(slots=2)
    assert queue.submit(ticket(1, charged_tokens=10_000), 0.0) is None
    (lease,) = queue.grant(0.0)
    queue.set_tenant("a", TenantPolicy(limits=TenantLimits(tokens_per_minute=600)), 0.0)
    assert queue.submit(ticket(2, charged_tokens=500), 0.0) is None
    queue.release(lease.lease_id, TokenUsage(10, 0, 20), 0.0)
    assert remaining(queue) == (None, 100)

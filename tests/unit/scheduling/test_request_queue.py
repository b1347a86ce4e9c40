"""What the queue answers to one caller: refusals and their times, sessions, draining, retries."""

from __future__ import annotations

from cluster.scheduling import ClassPolicy, Replica, RequestQueue, TenantLimits, TenantPolicy, Ticket, TokenUsage
from cluster.vocabulary import RequestClass

ONLINE, SEMI, OFFLINE = RequestClass


def make_queue(slots: int = 1) -> RequestQueue:
    queue = RequestQueue({ONLINE: ClassPolicy(max_queued=3, max_wait_s=10)})
    queue.put_replica(Replica("r", "d", (ONLINE,), slots), 0.0)
    return queue


def ticket(number: int, tenant: str = "a", at_s: float = 0.0, **fields: object) -> Ticket:
    return Ticket(f"t{number}", "g", tenant, ONLINE, 10, 20, at_s, **fields)  # type: ignore[arg-type]


def test_refusals_name_status_and_time() -> None:
    queue = make_queue()
    for number in range(4):
        assert queue.submit(ticket(number), 0.0) is None
        queue.grant(0.0)
    full = queue.submit(ticket(9), 1.0)
    assert full is not None and (full.status, full.code) == (429, "queue_full")
    late = queue.expire(10.0)
    assert [(r.status, r.code) for _, r in late] == [(503, "queue_timeout")] * 3
    unserved = queue.submit(Ticket("x", "g", "a", OFFLINE, 1, 1, 0.0), 0.0)
    assert unserved is not None and unserved.status == 503 and unserved.retry_after_s is None


def test_retry_after_follows_the_tenants_own_drain_rate() -> None:
    """A tenant that drains 30 tokens a second and has 90 waiting is told 3 s, whatever the others do."""
    queue = make_queue(slots=1)
    now_s = 0.0
    for number in range(200):
        queue.submit(ticket(number, at_s=now_s), now_s)
        (lease,) = queue.grant(now_s)
        now_s += 1.0
        queue.release(lease.lease_id, TokenUsage(10, 0, 20), now_s)
    queue.submit(ticket(500, tenant="other", at_s=now_s), now_s)
    queue.grant(now_s)
    for number in range(300, 303):
        assert queue.submit(ticket(number, at_s=now_s), now_s) is None
    refused = queue.submit(ticket(400), now_s)
    assert refused is not None and refused.retry_after_s is not None
    assert 2.5 <= refused.retry_after_s <= 3.5


def test_rate_limits_refuse_with_the_time_the_bucket_needs() -> None:
    queue = make_queue(slots=100)
    queue.set_tenant("a", TenantPolicy(limits=TenantLimits(requests_per_minute=2)), 0.0)
    assert queue.submit(ticket(1), 0.0) is None
    assert queue.submit(ticket(2), 0.0) is None
    refused = queue.submit(ticket(3), 0.0)
    assert refused is not None and refused.status == 429 and refused.retry_after_s == 30.0
    assert queue.submit(ticket(4), 30.0) is None


def test_token_limit_is_settled_by_real_usage() -> None:
    queue = make_queue(slots=100)
    queue.set_tenant("a", TenantPolicy(limits=TenantLimits(tokens_per_minute=60)), 0.0)
    assert queue.submit(ticket(1), 0.0) is None
    assert queue.submit(ticket(2), 0.0) is None
    assert queue.submit(ticket(3), 0.0) is not None
    for lease in queue.grant(0.0):
        queue.release(lease.lease_id, TokenUsage(10, 0, 0), 0.0)
    assert queue.submit(ticket(4), 0.0) is None, "40 of 60 assumed tokens were not used"


def test_nothing_ran_nothing_charged() -> None:
    queue = make_queue()
    queue.submit(ticket(1), 0.0)
    (lease,) = queue.grant(0.0)
    assert queue.counters()[ONLINE]["a"] > 0
    queue.release(lease.lease_id, None, 1.0)
    assert queue.counters()[ONLINE]["a"] == 0


def test_a_session_returns_to_its_replica_unless_that_is_full() -> None:
    queue = RequestQueue({ONLINE: ClassPolicy(max_queued=9, max_wait_s=9)})
    for name in ("r1", "r2"):
        queue.put_replica(Replica(name, "d", (ONLINE,), 2), 0.0)
    queue.submit(ticket(1, session="chat"), 0.0)
    (first,) = queue.grant(0.0)
    queue.submit(ticket(2, session="chat"), 0.0)
    (second,) = queue.grant(0.0)
    assert first.replica_id == second.replica_id, "least loaded would have taken the other"
    queue.submit(ticket(3, session="chat"), 0.0)
    (third,) = queue.grant(0.0)
    assert third.replica_id != first.replica_id


def test_a_draining_replica_takes_no_new_lease() -> None:
    queue = make_queue(slots=2)
    queue.put_replica(Replica("r", "d", (ONLINE,), 2, draining=True), 0.0)
    queue.submit(ticket(1), 0.0)
    assert queue.grant(0.0) == []
    queue.put_replica(Replica("r2", "d", (ONLINE,), 2), 0.0)
    assert [lease.replica_id for lease in queue.grant(0.0)] == ["r2"]


def test_a_replica_that_lost_slots_takes_work_again_when_enough_has_ended() -> None:
    queue = make_queue(slots=3)
    for number in range(3):
        queue.submit(ticket(number), 0.0)
    leases = queue.grant(0.0)
    queue.put_replica(Replica("r", "d", (ONLINE,), 1), 0.0)
    queue.submit(ticket(9), 0.0)
    for lease in leases[:2]:
        queue.release(lease.lease_id, TokenUsage(10, 0, 1), 1.0)
        queue.put_replica(Replica("r", "d", (ONLINE,), 1), 1.0)
        assert queue.grant(1.0) == []
    queue.release(leases[2].lease_id, TokenUsage(10, 0, 1), 1.0)
    assert [lease.ticket.ticket_id for lease in queue.grant(1.0)] == ["t9"]

"""What the queue answers to one caller: refusals and their times, sessions, draining, retries."""

from __future__ import annotations

import pytest

from cluster.scheduling import (
    ClassPolicy,
    Lease,
    QueuePolicy,
    Replica,
    RequestQueue,
    TenantLimits,
    TenantPolicy,
    Ticket,
    TokenUsage,
)
from cluster.scheduling.admission import UNKNOWN_RATE_RETRY_S
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


def two_replicas(fairness: str = "vtc", max_queued: int = 9) -> tuple[RequestQueue, Lease]:
    """`busy` has one slot, which is taken (the lease); `failing` has four free ones."""
    policy = QueuePolicy(fairness=fairness)  # type: ignore[arg-type]
    queue = RequestQueue({ONLINE: ClassPolicy(max_queued, max_wait_s=50)}, policy=policy)
    queue.put_replica(Replica("busy", "d", (ONLINE,), 1), 0.0)
    queue.submit(ticket(0, "other"), 0.0)
    (lease,) = queue.grant(0.0)
    queue.put_replica(Replica("failing", "d", (ONLINE,), 4), 0.0)
    return queue, lease


@pytest.mark.parametrize("fairness", ["vtc", "dlpm"])
def test_a_retry_that_waits_for_another_replica_blocks_nobody(fairness: str) -> None:
    queue, lease = two_replicas(fairness)
    for number in (1, 2):
        queue.submit(ticket(number, avoid=("failing",), at_s=1.0), 1.0)
    queue.submit(ticket(3, at_s=2.0), 2.0)
    queue.submit(ticket(4, "b", at_s=2.0), 2.0)
    assert {x.ticket.ticket_id for x in queue.grant(2.0)} == {"t3", "t4"}
    assert queue.waiting(ONLINE) == 2 and queue.grant(3.0) == []
    assert queue._lines.of(ONLINE).flows.backlog > 0
    queue.release(lease.lease_id, TokenUsage(10, 0, 5), 4.0)
    queue.submit(ticket(5, "b", at_s=4.0), 4.0)
    granted = {x.ticket.ticket_id: x.replica_id for x in queue.grant(4.0)}
    assert granted == {"t1": "busy", "t5": "failing"}
    assert [t.ticket_id for t, _ in queue.expire(60.0)] == ["t2"], "it waits like the others"


def test_time_aside_earns_no_credit_and_costs_nobody_a_place_in_the_queue() -> None:
    queue, _ = two_replicas()
    queue.set_tenant("strict", TenantPolicy(limits=TenantLimits(max_queued=0)), 0.0)
    for number in range(1, 5):
        queue.submit(ticket(number, avoid=("failing",)), 0.0)
    assert queue.grant(0.0) == []
    for number in range(10, 20):
        assert queue.submit(ticket(number, "strict"), 0.0) is None, "four slots are free, and nobody wants them"
        (lease,) = queue.grant(0.0)
        queue.release(lease.lease_id, TokenUsage(10, 0, 20), 0.0)
    counters = queue.counters()[ONLINE]
    assert counters["a"] == counters["strict"] > 0


def test_retries_that_step_aside_can_be_shed() -> None:
    queue, _ = two_replicas(max_queued=2)
    for number in (1, 2):
        queue.submit(ticket(number, avoid=("failing",)), 0.0)
    for _ in range(5):
        assert queue.grant(0.0) == []
    for number in range(10, 14):
        assert queue.submit(ticket(number, "b"), 0.0) is None
        assert len(queue.grant(0.0)) == 1
    assert queue.submit(ticket(20, "c"), 0.0) is None
    assert [t.ticket_id for t, _ in queue.take_shed()] == ["t2"]


def test_what_waits_for_other_replicas_does_not_make_a_request_wait() -> None:
    queue = RequestQueue({ONLINE: ClassPolicy(3, 10), OFFLINE: ClassPolicy(9, 10)})
    queue.put_replica(Replica("r", "d", (ONLINE,), 1), 0.0)
    queue.set_tenant("a", TenantPolicy(limits=TenantLimits(max_queued=0)), 0.0)
    for number in range(5):
        queue.submit(Ticket(f"o{number}", "g", "b", OFFLINE, 10, 10, 0.0), 0.0)
    assert queue.submit(ticket(1), 0.0) is None, "a slot is free, and only others' tickets wait"
    queue.put_replica(Replica("shared", "d", (ONLINE, OFFLINE), 1), 0.0)
    refused = queue.submit(ticket(2), 0.0)
    assert refused is not None and refused.code == "tenant_queue_full"


def test_retry_after_a_pause_does_not_tell_the_pause() -> None:
    queue = make_queue()
    queue.submit(ticket(1), 0.0)
    (lease,) = queue.grant(0.0)
    queue.release(lease.lease_id, TokenUsage(10, 0, 20), 1.0)
    for number in range(2, 6):
        queue.submit(ticket(number, at_s=300.0), 300.0)
    assert queue.submit(ticket(9, at_s=300.0), 300.0).retry_after_s == UNKNOWN_RATE_RETRY_S  # type: ignore[union-attr]


def test_a_restored_ticket_of_a_class_that_is_gone_is_refused() -> None:
    queue = make_queue()
    lost = Ticket("x", "g", "a", OFFLINE, 1, 1, 0.0)
    ((told, refusal),) = queue.recovery.restore([lost, ticket(1)], [], 0.0)
    assert told is lost and refusal.code == "class_not_served" and queue.waiting(ONLINE) == 1


def test_a_new_configuration_adds_classes_and_keeps_what_waits() -> None:
    queue = make_queue()
    queue.put_replica(Replica("r", "d", (ONLINE, OFFLINE), 1, draining=True), 0.0)
    queue.submit(ticket(1), 0.0)
    queue.configure({OFFLINE: ClassPolicy(1, 20.0)}, QueuePolicy())
    assert queue.submit(Ticket("x", "g", "a", OFFLINE, 1, 1, 0.0), 0.0) is None
    refused = queue.submit(Ticket("y", "g", "a", OFFLINE, 1, 1, 0.0), 0.0)
    assert refused is not None and refused.code == "queue_full"
    assert [t.ticket_id for t, _ in queue.expire(10.0)] == ["t1"]
    assert [t.ticket_id for t, _ in queue.expire(20.0)] == ["x"]
    with pytest.raises(ValueError, match="lower them"):
        queue.configure({OFFLINE: ClassPolicy(1, 20.0, floor=0.9)}, QueuePolicy())


def test_a_drained_burst_is_forgotten() -> None:
    queue = RequestQueue({ONLINE: ClassPolicy(1000, 100)})
    queue.put_replica(Replica("r", "d", (ONLINE,), 1000), 0.0)
    for number in range(500):
        queue.submit(ticket(number), 0.0)
    assert len(queue.grant(0.0)) == 500
    assert queue._lines.of(ONLINE).flows.root.children["a"].newest == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("draining", [False, True])
def test_nobody_makes_room_for_a_request_that_has_a_slot_of_its_own(draining: bool) -> None:
    """The queue is full of work that waits for a replica of its class; online has a free replica to itself."""
    queue = RequestQueue({ONLINE: ClassPolicy(9, 10), OFFLINE: ClassPolicy(9, 10)}, policy=QueuePolicy(max_queued=3))
    queue.put_replica(Replica("own", "d", (ONLINE,), 2), 0.0)
    queue.put_replica(Replica("shared", "e", (OFFLINE, ONLINE), 1), 0.0)
    for number in range(4):
        assert queue.submit(Ticket(f"o{number}", "g", "b", OFFLINE, 10, 10, 0.0), 0.0) is None
        queue.grant(0.0)
    queue.put_replica(Replica("shared", "e", (OFFLINE, ONLINE), 1, draining=draining), 0.0)
    assert queue.waiting(OFFLINE) == 3
    assert queue.submit(ticket(9), 0.0) is None and not queue.take_shed()
    assert [lease.replica_id for lease in queue.grant(0.0)] == ["own"]

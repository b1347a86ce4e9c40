"""Leases are conserved whatever happens: a state machine plays gateways, replicas and deaths against the queue."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from cluster.scheduling import (
    ClassPolicy,
    Lease,
    Refusal,
    Replica,
    RequestQueue,
    TenantLimits,
    TenantPolicy,
    Ticket,
    TokenUsage,
)
from cluster.vocabulary import RequestClass

ONLINE, SEMI, OFFLINE = RequestClass
CLASSES = {c: ClassPolicy(max_queued=12, max_wait_s=50, floor=0.1 if c is SEMI else 0.0) for c in RequestClass}
MAX_CONCURRENT = 3
TENANTS = ("a", "b", "capped")


class QueueMachine(RuleBasedStateMachine):
    """Model: the set of open tickets and leases as the gateways know them."""

    tickets = Bundle("tickets")
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.queue = RequestQueue(CLASSES)
        self.queue.set_tenant("capped", TenantPolicy(limits=TenantLimits(max_concurrent=MAX_CONCURRENT)), 0.0)
        self.now_s = 0.0
        self.waiting: set[str] = set()
        self.running: dict[str, Lease] = {}
        self.ended: set[str] = set()
        self.number = 0

    @rule(
        target=tickets,
        tenant=st.sampled_from(TENANTS),
        request_class=st.sampled_from(list(RequestClass)),
        owner=st.sampled_from(["g1", "g2"]),
        session=st.sampled_from([None, "s1", "s2"]),
    )
    def submit(self, tenant: str, request_class: RequestClass, owner: str, session: str | None) -> Ticket:
        self.number += 1
        ticket = Ticket(f"t{self.number}", owner, tenant, request_class, 10, 20, self.now_s, session)
        refusal = self.queue.submit(ticket, self.now_s)
        if refusal is None:
            self.waiting.add(ticket.ticket_id)
        else:
            assert isinstance(refusal, Refusal) and refusal.status == 429 and refusal.retry_after_s >= 1
            self.ended.add(ticket.ticket_id)
        return ticket

    @rule(target=leases)
    def grant(self) -> object:
        granted = self.queue.grant(self.now_s)
        for lease in granted:
            assert lease.ticket.ticket_id in self.waiting, "granted twice, or not waiting"
            assert lease.lease_id not in self.running
            self.waiting.discard(lease.ticket.ticket_id)
            self.running[lease.lease_id] = lease
        return multiple(*granted)

    @rule(lease=leases, tokens=st.integers(0, 30))
    def progress(self, lease: Lease, tokens: int) -> None:
        self.queue.progress(lease.lease_id, tokens, self.now_s)

    @rule(lease=consumes(leases), ran=st.booleans(), tokens=st.integers(0, 30))
    def release(self, lease: Lease, ran: bool, tokens: int) -> None:
        known = self.queue.release(lease.lease_id, TokenUsage(10, 0, tokens) if ran else None, self.now_s)
        assert known == (lease.lease_id in self.running)
        self.running.pop(lease.lease_id, None)
        assert not self.queue.release(lease.lease_id, None, self.now_s), "a lease ends once"

    @rule(ticket=consumes(tickets))
    def cancel(self, ticket: Ticket) -> None:
        assert self.queue.cancel(ticket.ticket_id, self.now_s) == (ticket.ticket_id in self.waiting)
        self.waiting.discard(ticket.ticket_id)

    @rule(seconds=st.floats(0, 30))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        for _, refusal in self.queue.expire(self.now_s):
            assert refusal.status == 503 and refusal.ticket_id in self.waiting
            self.waiting.discard(refusal.ticket_id)

    @rule(name=st.sampled_from(["r1", "r2"]), slots=st.integers(1, 4), own=st.sampled_from(list(RequestClass)))
    def replica_comes(self, name: str, slots: int, own: RequestClass) -> None:
        serves = (own, *[c for c in RequestClass if c is not own])
        self.queue.put_replica(Replica(name, "d", serves, slots), self.now_s)

    @rule(name=st.sampled_from(["r1", "r2"]))
    def replica_dies(self, name: str) -> None:
        for lease in self.queue.remove_replica(name, self.now_s):
            assert lease.lease_id in self.running

    @rule(owner=st.sampled_from(["g1", "g2"]))
    def gateway_dies(self, owner: str) -> None:
        mine = {t.ticket_id for q in self.queue._queues.values() for t in q if t.owner == owner}
        self.queue.release_owner(owner, self.now_s)
        self.waiting -= mine
        self.running = {i: lease for i, lease in self.running.items() if lease.ticket.owner != owner}

    @rule(owner=st.sampled_from(["g1", "g2"]), data=st.data())
    def messages_are_lost(self, owner: str, data: st.DataObject) -> None:
        """The gateway holds less or more than the queue believes; after reconciling both agree."""
        tickets = [t for q in self.queue._queues.values() for t in q if t.owner == owner]
        leases = [lease for lease in self.running.values() if lease.ticket.owner == owner]
        kept = [t for t in tickets if data.draw(st.booleans())]
        held = [lease for lease in leases if data.draw(st.booleans())]
        regranted = [lease.ticket for lease in leases if lease not in held and data.draw(st.booleans())]
        self.queue.reconcile_owner(owner, kept + regranted, held, self.now_s)
        self.waiting -= {t.ticket_id for t in tickets} - {t.ticket_id for t in kept}
        self.waiting |= {t.ticket_id for t in regranted}
        for lease in leases:
            if lease not in held:
                del self.running[lease.lease_id]

    @rule()
    def dispatcher_restarts(self) -> None:
        """Gateways bring back what they hold: nothing is lost, nothing doubled."""
        waiting = [t for q in self.queue._queues.values() for t in q]
        replicas = self.queue.replicas()
        self.queue = RequestQueue(CLASSES, lease_prefix=f"{self.number}-{len(self.ended)}-{self.now_s}-")
        self.queue.set_tenant("capped", TenantPolicy(limits=TenantLimits(max_concurrent=MAX_CONCURRENT)), self.now_s)
        self.queue.restore(waiting, self.running.values(), self.now_s)
        self.queue.restore(waiting, self.running.values(), self.now_s)
        for replica in replicas:
            self.queue.put_replica(replica, self.now_s)

    @invariant()
    def conservation(self) -> None:
        assert {lease.lease_id for lease in self.queue.leases()} == set(self.running)
        assert sum(self.queue.waiting(c) for c in RequestClass) == len(self.waiting)
        for replica in self.queue.replicas():
            mine = sum(1 for lease in self.running.values() if lease.replica_id == replica.replica_id)
            assert replica.running == mine
        capped = sum(1 for lease in self.running.values() if lease.ticket.tenant == "capped")
        assert capped <= MAX_CONCURRENT


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestQueueMachine = QueueMachine.TestCase


def make_queue(slots: int = 1, **policy: float) -> RequestQueue:
    queue = RequestQueue({ONLINE: ClassPolicy(**{"max_queued": 3, "max_wait_s": 10, **policy})})
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

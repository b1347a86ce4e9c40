"""Leases are conserved whatever happens: a state machine plays gateways, replicas and deaths against the queue."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from cluster.scheduling import (
    ClassPolicy,
    Lease,
    Prepaid,
    QueuePolicy,
    Refusal,
    Replica,
    RequestQueue,
    TenantLimits,
    TenantPolicy,
    Ticket,
    TokenUsage,
)
from cluster.scheduling.flows import TenantNode
from cluster.vocabulary import RequestClass

ONLINE, SEMI, OFFLINE = RequestClass
CLASSES = {
    c: ClassPolicy(max_queued=9, max_wait_s=50, floor=0.1 if c is SEMI else 0.0, max_age_s=20) for c in RequestClass
}
MAX_QUEUED = 20
MAX_CONCURRENT = 3
TENANTS = ("a", "b", "capped")
OWNERS = ("g1", "g2")
REPLICAS = ("r1", "r2")


class QueueMachine(RuleBasedStateMachine):
    """Model: the open tickets, leases and prepaid slots as the gateways know them, and the service that was used."""

    tickets = Bundle("tickets")
    leases = Bundle("leases")
    slots = Bundle("slots")
    fairness = "vtc"

    def __init__(self) -> None:
        super().__init__()
        self.lives = 0
        self.queue = self.fresh_queue()
        self.now_s = 0.0
        self.waiting: dict[str, Ticket] = {}
        self.running: dict[str, Lease] = {}
        self.prepaid: dict[str, Prepaid] = {}
        self.produced: dict[str, int] = {}
        self.number = 0

    def fresh_queue(self) -> RequestQueue:
        self.lives += 1
        policy = QueuePolicy(max_queued=MAX_QUEUED, fairness=self.fairness, locality_quantum_tokens=50)  # type: ignore[arg-type]
        queue = RequestQueue(CLASSES, policy=policy, lease_prefix=f"life{self.lives}-")
        queue.set_tenant("capped", TenantPolicy(limits=TenantLimits(max_concurrent=MAX_CONCURRENT)), 0.0)
        queue.set_tenant("b", TenantPolicy(weight=3), 0.0)
        return queue

    def new_ticket(self, tenant: str, request_class: RequestClass, owner: str, shape: int) -> Ticket:
        self.number += 1
        return Ticket(
            f"t{self.number}",
            owner,
            tenant,
            request_class,
            10,
            20,
            self.now_s,
            session="s" if shape % 2 else None,
            avoid=("r1",) if shape == 5 else (),
            key=f"k{shape % 2}",
            program="p" if shape == 3 else None,
            deadline_at_s=self.now_s + 10 * shape if shape > 3 else None,
            prefix=(shape % 3, 10 + shape),
        )

    @rule(
        target=tickets,
        tenant=st.sampled_from(TENANTS),
        request_class=st.sampled_from(list(RequestClass)),
        owner=st.sampled_from(OWNERS),
        shape=st.integers(0, 5),
    )
    def submit(self, tenant: str, request_class: RequestClass, owner: str, shape: int) -> Ticket:
        ticket = self.new_ticket(tenant, request_class, owner, shape)
        refusal = self.queue.submit(ticket, self.now_s)
        if refusal is None:
            self.waiting[ticket.ticket_id] = ticket
        else:
            assert isinstance(refusal, Refusal) and refusal.status == 429
            assert refusal.retry_after_s is not None and refusal.retry_after_s >= 1
        for victim, told in self.queue.take_shed():
            assert refusal is None and (told.status, told.code) == (503, "shed")
            assert self.waiting.pop(victim.ticket_id) is victim
        return ticket

    @rule(target=leases, most=st.sampled_from([None, None, 1, 2]))
    def grant(self, most: int | None) -> object:
        granted = self.queue.grant(self.now_s, most)
        assert most is None or len(granted) <= most
        for lease in granted:
            assert self.waiting.pop(lease.ticket.ticket_id, None) is lease.ticket, "granted twice, or not waiting"
            assert lease.lease_id not in self.running and lease.lease_id not in self.prepaid
            self.running[lease.lease_id] = lease
        return multiple(*granted)

    @rule(lease=leases, tokens=st.integers(0, 30))
    def progress(self, lease: Lease, tokens: int) -> None:
        self.queue.progress(lease.lease_id, tokens, self.now_s)
        self.produced[lease.lease_id] = max(tokens, self.produced.get(lease.lease_id, 0))

    @rule(lease=consumes(leases), ran=st.booleans(), tokens=st.integers(0, 30))
    def release(self, lease: Lease, ran: bool, tokens: int) -> None:
        known = self.queue.release(lease.lease_id, TokenUsage(10, 0, tokens) if ran else None, self.now_s)
        assert known == (lease.lease_id in self.running)
        self.running.pop(lease.lease_id, None)
        assert not self.queue.release(lease.lease_id, None, self.now_s), "a lease ends once"

    @rule(ticket=consumes(tickets))
    def cancel(self, ticket: Ticket) -> None:
        assert self.queue.cancel(ticket.ticket_id, self.now_s) == (ticket.ticket_id in self.waiting)
        self.waiting.pop(ticket.ticket_id, None)

    @rule(seconds=st.floats(0, 30))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        for ticket, refusal in self.queue.expire(self.now_s):
            assert refusal.status == 503 and self.now_s - ticket.arrived_at_s >= 50
            assert self.waiting.pop(refusal.ticket_id) is ticket
        assert all(self.now_s - t.arrived_at_s < 50 for t in self.waiting.values())

    @rule(target=slots, owner=st.sampled_from(OWNERS), most=st.integers(1, 3))
    def prepay(self, owner: str, most: int) -> object:
        given = self.queue.prepay(owner, self.now_s, most)
        assert len(given) <= most
        contended = {t.request_class for t in self.waiting.values() if t.tenant != "capped"}
        for slot in given:
            assert not contended & set(slot.serves), "a slot was held in advance while somebody waited for it"
            assert slot.lease_id not in self.running and slot.lease_id not in self.prepaid
            self.prepaid[slot.lease_id] = slot
        return multiple(*given)

    @rule(target=leases, slot=consumes(slots), tenant=st.sampled_from(("a", "b")), shape=st.integers(0, 3))
    def use_prepaid(self, slot: Prepaid, tenant: str, shape: int) -> object:
        ticket = self.new_ticket(tenant, slot.serves[0], slot.owner, shape)
        lease = self.queue.use_prepaid(slot.lease_id, ticket, self.now_s, self.now_s)
        assert (lease is not None) == (slot.lease_id in self.prepaid)
        if lease is None:
            return multiple()
        del self.prepaid[slot.lease_id]
        self.running[lease.lease_id] = lease
        return lease

    @rule(slot=consumes(slots))
    def return_prepaid(self, slot: Prepaid) -> None:
        assert self.queue.return_prepaid(slot.lease_id, self.now_s) == (slot.lease_id in self.prepaid)
        self.prepaid.pop(slot.lease_id, None)

    @rule(
        name=st.sampled_from(REPLICAS),
        slots_of=st.integers(1, 4),
        own=st.sampled_from(list(RequestClass)),
        draining=st.sampled_from([False, False, False, True]),
    )
    def replica_comes(self, name: str, slots_of: int, own: RequestClass, draining: bool) -> None:
        serves = (own, *[c for c in RequestClass if c is not own])
        self.queue.put_replica(Replica(name, "d", serves, slots_of, draining=draining), self.now_s)

    @rule(name=st.sampled_from(REPLICAS))
    def replica_dies(self, name: str) -> None:
        known = any(r.replica_id == name for r in self.queue.replicas())
        lost = {lease.lease_id for lease in self.queue.remove_replica(name, self.now_s)}
        assert lost == ({i for i, lease in self.running.items() if lease.replica_id == name} if known else set())
        self.prepaid = {i: slot for i, slot in self.prepaid.items() if slot.replica_id != name or not known}

    @rule(owner=st.sampled_from(OWNERS))
    def gateway_dies(self, owner: str) -> None:
        self.queue.release_owner(owner, self.now_s)
        self.waiting = {i: t for i, t in self.waiting.items() if t.owner != owner}
        self.running = {i: lease for i, lease in self.running.items() if lease.ticket.owner != owner}
        self.prepaid = {i: slot for i, slot in self.prepaid.items() if slot.owner != owner}

    @rule(owner=st.sampled_from(OWNERS), data=st.data())
    def messages_are_lost(self, owner: str, data: st.DataObject) -> None:
        """The gateway holds less or more than the queue believes; after reconciling both agree."""
        tickets = [t for t in self.waiting.values() if t.owner == owner]
        leases = [lease for lease in self.running.values() if lease.ticket.owner == owner]
        slots = [slot for slot in self.prepaid.values() if slot.owner == owner]
        kept = [t for t in tickets if data.draw(st.booleans())]
        held = [lease for lease in leases if data.draw(st.booleans())]
        kept_slots = [slot for slot in slots if data.draw(st.booleans())]
        used = [
            Lease(s.lease_id, self.new_ticket("a", s.serves[0], owner, 0), s.replica_id, self.now_s)
            for s in slots
            if s not in kept_slots and data.draw(st.booleans())
        ]
        regranted = [lease.ticket for lease in leases if lease not in held and data.draw(st.booleans())]
        self.queue.recovery.reconcile_owner(owner, kept + regranted, held + used, self.now_s, kept_slots, self.produced)
        for gone in tickets:
            del self.waiting[gone.ticket_id]
        self.waiting |= {t.ticket_id: t for t in kept + regranted}
        for slot in slots:
            if slot not in kept_slots:
                del self.prepaid[slot.lease_id]
        for lease in leases:
            if lease not in held:
                del self.running[lease.lease_id]
        self.running |= {lease.lease_id: lease for lease in used}

    @rule(with_slots=st.booleans())
    def dispatcher_restarts(self, with_slots: bool) -> None:
        """Gateways bring back what they hold: nothing is lost, nothing doubled, counters go on where they were."""
        snapshot, replicas, before = self.queue.counters_snapshot(), self.queue.replicas(), self.queue.counters()
        self.queue = self.fresh_queue()
        for _ in range(2):  # two gateways may bring the same snapshot
            self.queue.recovery.restore_counters(snapshot)
        slots = list(self.prepaid.values()) if with_slots else []
        if not with_slots:
            self.prepaid = {}
        for _ in range(2):
            waiting, running = self.waiting.values(), self.running.values()
            self.queue.recovery.restore(waiting, running, self.now_s, slots, self.produced)
        for replica in replicas:
            self.queue.put_replica(replica, self.now_s)
        after = self.queue.counters()
        for request_class, tenants in before.items():
            for tenant, counter in tenants.items():
                if after[request_class].get(tenant, 0.0) > 0:
                    assert after[request_class][tenant] >= counter - 1e-6
        assert self.queue.counters_snapshot()["version"] > snapshot["version"]

    @invariant()
    def conservation(self) -> None:
        assert {lease.lease_id for lease in self.queue.leases()} == set(self.running)
        assert {t.ticket_id for t in self.queue.tickets()} == set(self.waiting)
        for request_class in RequestClass:
            expected = sum(1 for t in self.waiting.values() if t.request_class is request_class)
            assert self.queue.waiting(request_class) == expected
        held = {slot.lease_id for owner in OWNERS for slot in self.queue.prepaid_of(owner)}
        assert held == set(self.prepaid)
        for replica in self.queue.replicas():
            leased = [one.replica_id for one in self.running.values()]
            in_advance = [one.replica_id for one in self.prepaid.values()]
            assert replica.running == (leased + in_advance).count(replica.replica_id)

    @invariant()
    def accounts_agree(self) -> None:
        for tenant in TENANTS:
            account = self.queue._admission.account(tenant, self.now_s)
            assert account.running == sum(1 for lease in self.running.values() if lease.ticket.tenant == tenant)
            mine = [t for t in self.waiting.values() if t.tenant == tenant]
            assert account.queued == len(mine) and account.backlog_tokens == 30 * len(mine)
            if tenant == "capped":
                assert account.running <= MAX_CONCURRENT

    @invariant()
    def counts_of_the_tree_agree(self) -> None:
        for line in self.queue._lines.all:
            nodes = list(line.flows.root.children.values())
            mine = [t for t in self.waiting.values() if t.request_class is line.request_class]
            assert line.flows.ready == sum(node.waiting for node in nodes if not node.held)
            for node in nodes:
                assert node.waiting == sum(1 for t in mine if t.tenant == node.name)
                assert sum(key.waiting for key in node.children.values()) == node.waiting
            backlogs = [node.backlog for node in nodes if isinstance(node, TenantNode)]
            assert line.flows.backlog == pytest.approx(sum(backlogs), abs=1e-6)
        free = {r.replica_id: r.free for r in self.queue.replicas()}
        pools = {id(seat.pool): seat.pool for seat in self.queue._pools._seats.values()}
        for pool in pools.values():
            assert pool.free_slots == sum(free[seat.replica_id] for seat in pool.seats)

    def teardown(self) -> None:
        """Once everything has ended all accounts are at zero."""
        for lease in list(self.running.values()):
            self.queue.release(lease.lease_id, None, self.now_s)
        for ticket in list(self.waiting):
            self.queue.cancel(ticket, self.now_s)
        for slot in list(self.prepaid):
            self.queue.return_prepaid(slot, self.now_s)
        for tenant in TENANTS:
            account = self.queue._admission.account(tenant, self.now_s)
            assert (account.running, account.queued, account.backlog_tokens) == (0, 0, 0)
        assert all(replica.running == 0 for replica in self.queue.replicas())
        assert all(line.flows.backlog == 0 and line.flows.ready == 0 for line in self.queue._lines.all)


class LocalityMachine(QueueMachine):
    """The same promises in the locality-aware mode."""

    fairness = "dlpm"


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
LocalityMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=60, deadline=None)
TestQueueMachine = QueueMachine.TestCase
TestLocalityMachine = LocalityMachine.TestCase

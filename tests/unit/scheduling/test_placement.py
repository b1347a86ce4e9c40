"""Which replica a session goes to: its own while that pays, the ring's for strangers, the least busy for the rest."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduling import ClassPolicy, Lease, QueuePolicy, Replica, RequestQueue, RoutingPolicy, Ticket, TokenUsage
from cluster.scheduling.backlog import FIRST_GUESS_PER_S, PrefillRate
from cluster.scheduling.locality import MOST_PASSES
from cluster.scheduling.placement import SessionPlacement
from cluster.scheduling.prefix_index import BLOCK_TOKENS, BLOCKS_KEPT, BLOCKS_USED
from cluster.scheduling.replica_pools import ReplicaPools, Seat
from cluster.vocabulary import RequestClass

ONLINE, SEMI = RequestClass.ONLINE, RequestClass.SEMI_ONLINE
STAY_S = 0.05


class Service:
    """A queue with replicas, and a way to ask for one thing at a time."""

    def __init__(self, replicas: int = 2, slots: int = 8, stay_s: float = STAY_S, fairness: str = "vtc") -> None:
        policy = QueuePolicy(routing=RoutingPolicy(stay_s=stay_s, running_tokens=0.0), fairness=fairness)  # type: ignore[arg-type]
        self.queue = RequestQueue({ONLINE: ClassPolicy(10**6, 10**6), SEMI: ClassPolicy(10**6, 10**6)}, policy=policy)
        for number in range(replicas):
            self.queue.put_replica(Replica(f"r{number}", "d", (ONLINE,), slots), 0.0)
        self.number = 0

    def submit(self, session: str | None, prompt: int = 100, now_s: float = 0.0, tenant: str = "a", **more: Any) -> str:
        self.number += 1
        ticket = Ticket(f"t{self.number}", "g", tenant, ONLINE, prompt, 100, now_s, session=session, **more)
        assert self.queue.submit(ticket, now_s) is None
        return ticket.ticket_id

    def ask(self, session: str | None, prompt: int = 100, now_s: float = 0.0, **more: Any) -> Lease:
        self.submit(session, prompt, now_s, **more)
        (lease,) = self.queue.grant(now_s)
        return lease

    def end(self, lease: Lease, now_s: float, first_token_s: float | None = None, cached: int = 0) -> None:
        usage = TokenUsage(lease.ticket.prompt_tokens, cached, 10, first_token_s)
        assert self.queue.release(lease.lease_id, usage, now_s)


def pair(stay_s: float = STAY_S, miss_weight: float = 1.0) -> tuple[SessionPlacement, list[Seat]]:
    """Two replicas on each of which something runs."""
    pools = ReplicaPools()
    placement = SessionPlacement(pools, RoutingPolicy(stay_s=stay_s, running_tokens=0.0, miss_weight=miss_weight))
    for name in ("r0", "r1"):
        pools.put(Replica(name, "d", (ONLINE,), 8), 1)
        placement.put_replica(name)
    seats = [pools.get(name) for name in ("r0", "r1")]
    assert seats[0] is not None and seats[1] is not None
    return placement, seats  # type: ignore[return-value]


def ticket(session: str | None, prompt: int, prefix: tuple[int, ...] = ()) -> Ticket:
    return Ticket("t", "g", "a", ONLINE, prompt, 100, 0.0, session=session, prefix=prefix)


@given(st.integers(0, 20_000), st.integers(0, 20_000), st.integers(0, 5000), st.integers(0, 300), st.floats(1, 4))
def test_a_session_stays_exactly_while_what_is_ahead_costs_no_more_than_what_it_saves(
    history: int, ahead: int, elsewhere: int, stay_ms: int, miss_weight: float
) -> None:
    placement, (home, other) = pair(stay_ms / 1000, miss_weight)
    placement.remember(ticket("chat", history), "r0")
    placement.backlog.give(home, ahead, 5.0)
    placement.backlog.give(other, elsewhere, 5.0)
    chosen = placement.choose(ticket("chat", history + 10), 0, 5.0)
    # Of the ten new tokens half are taken for the last answer, which is cached.
    lost_s = (ahead - elsewhere - miss_weight * (history + 5)) / FIRST_GUESS_PER_S - stay_ms / 1000
    if abs(lost_s) > 1e-6:
        assert chosen is (home if lost_s < 0 else other)


@given(shared=st.integers(0, 60), ahead=st.integers(0, 8000))
def test_a_prefix_is_worth_its_prefill_and_no_more(shared: int, ahead: int) -> None:
    placement, (holder, other) = pair()
    placement.remember(ticket(None, 60 * 64, tuple(range(shared))), "r0")
    placement.backlog.give(holder, ahead, 5.0)
    chosen = placement.choose(ticket(None, 60 * 64, tuple(range(60))), 0, 5.0)
    if ahead != shared * 64:
        assert chosen is (holder if ahead < shared * 64 else other)


def test_the_work_ahead_goes_down_with_time() -> None:
    placement, (seat, _) = pair()
    assert placement.backlog.give(seat, 1000, 0.0) == 0.0
    assert placement.backlog.give(seat, 500, 0.0) == 1000
    assert placement.backlog.ahead(seat, 0.1) == pytest.approx(1500 - 0.1 * FIRST_GUESS_PER_S)
    assert placement.backlog.ahead(seat, 60.0) == 0.0
    assert placement.backlog.ahead(seat, -60.0) == 1500, "a clock that was set back"
    seat.give_back()
    assert placement.backlog.ahead(seat, 0.0) == 0.0, "nothing runs there"


def test_a_prompt_that_is_cached_elsewhere_goes_there_without_a_session() -> None:
    service = Service(replicas=4)
    document = tuple(range(40))
    first = service.ask(None, prompt=40 * 64, prefix=document)
    service.end(first, 5.0)
    for number in range(4):
        lease = service.ask(None, prompt=41 * 64, now_s=10.0 + number, prefix=(*document, 1000 + number))
        assert lease.replica_id == first.replica_id, "though it runs more than the others"


def test_a_neighbours_session_of_the_same_name_is_another() -> None:
    service = Service(replicas=8)
    homes = {tenant: service.ask("chat", tenant=tenant).replica_id for tenant in "abcdefgh"}
    assert len(set(homes.values())) > 1
    for tenant, home in homes.items():
        assert service.ask("chat", tenant=tenant, now_s=1.0).replica_id == home


def places(replicas: list[str], sessions: int) -> dict[int, str]:
    """Where sessions go that come one at a time, and that nobody remembers."""
    queue = RequestQueue({ONLINE: ClassPolicy(9, 9)})
    for name in replicas:
        queue.put_replica(Replica(name, "d", (ONLINE,), 64), 0.0)
    found = {}
    for number in range(sessions):
        queue.submit(Ticket(f"t{number}", "g", "a", ONLINE, 10, 10, float(number), session=f"s{number}"), float(number))
        (lease,) = queue.grant(float(number))
        found[number] = lease.replica_id
        queue.release(lease.lease_id, TokenUsage(10, 0, 10), float(number))
    return found


def test_a_restarted_dispatcher_finds_sessions_where_they_were_and_few_move_with_a_new_replica() -> None:
    names = ["r1", "r2", "r3", "r4"]
    before, again, grown = places(names, 400), places(names[::-1], 400), places([*names, "r5"], 400)
    assert before == again
    assert max(Counter(before.values()).values()) < 1.6 * 400 / 4
    moved = {number for number in before if before[number] != grown[number]}
    assert 0 < len(moved) < 1.6 * 400 / 5 and all(grown[number] == "r5" for number in moved)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16), st.integers(2, 6), st.floats(1.05, 2.0))
def test_strangers_load_no_replica_above_its_capacity(seed: int, replicas: int, load_factor: float) -> None:
    rng = random.Random(seed)
    queue = RequestQueue(
        {ONLINE: ClassPolicy(9, 9)}, policy=QueuePolicy(routing=RoutingPolicy(load_factor=load_factor, stay_s=10.0))
    )
    for number in range(replicas):
        queue.put_replica(Replica(f"r{number}", "d", (ONLINE,), 64), 0.0)
    for number in range(20 * replicas):
        queue.submit(Ticket(f"t{number}", "g", "a", ONLINE, 10, 10, 0.0, session=f"{rng.random()}"), 0.0)
        (lease,) = queue.grant(0.0)
        running = queue.taken_on(lease.replica_id)
        assert running <= load_factor * (number + 1) / replicas + 1


def test_sessions_and_prefixes_take_bounded_memory() -> None:
    pools = ReplicaPools()
    placement = SessionPlacement(pools, max_sessions=50)
    for name in ("r1", "r2"):
        pools.put(Replica(name, "d", (ONLINE,), 4), 0)
        placement.put_replica(name)
    for number in range(2500):
        prefix = tuple(range(number * 100, number * 100 + 64))
        ticket = Ticket(f"t{number}", "g", "a", ONLINE, 5000, 10, 0.0, session=f"s{number}", prefix=prefix)
        seat = placement.choose(ticket, 0, float(number))
        assert seat is not None
        placement.placed(ticket, seat, float(number))
    assert len(placement._homes) == 50
    assert all(len(seen) <= BLOCKS_KEPT for seen in placement.prefixes._seen.values())
    for name in ("r1", "r2"):
        pools.remove(name)
        placement.forget_replica(name)
    assert not placement._homes and not placement.prefixes._holders and len(placement.backlog) == 0
    assert len(placement._ring) == 0


def test_a_lease_that_was_brought_back_tells_where_its_session_lives() -> None:
    service = Service(replicas=4)
    lease = service.ask("chat", prefix=(1, 2))
    other = Lease("l", Ticket("t", "g", "a", ONLINE, 10, 10, 0.0, session="s", prefix=(5,)), "not yet here", 0.0)
    fresh = Service(replicas=4)
    fresh.queue.remove_replica(lease.replica_id, 0.0)
    fresh.queue.put_replica(Replica(lease.replica_id, "d", (ONLINE,), 8), 0.0)
    fresh.queue.recovery.restore([], [lease, other], 1.0)
    assert fresh.ask("chat", now_s=2.0).replica_id == lease.replica_id
    assert "not yet here" not in fresh.queue._placement.prefixes._seen
    assert fresh.ask("s", now_s=2.0).replica_id != "not yet here"


def test_a_prepaid_slot_makes_its_replica_the_sessions_home() -> None:
    service = Service(replicas=2)
    slots = service.queue.prepay("g", 0.0, 2)
    for slot in slots:
        ticket = Ticket(f"p-{slot.replica_id}", "g", "a", ONLINE, 3000, 10, 0.0, session=f"of-{slot.replica_id}")
        assert service.queue.use_prepaid(slot.lease_id, ticket, 0.0, 0.0) is not None
    for slot in slots:
        assert service.ask(f"of-{slot.replica_id}", prompt=3100, now_s=9.0).replica_id == slot.replica_id


def test_own_replicas_come_before_lent_ones_even_for_a_session_that_lived_there() -> None:
    service = Service(replicas=1, slots=1)
    service.queue.put_replica(Replica("lent", "e", (SEMI, ONLINE), 4), 0.0)
    own = service.ask("first")
    assert own.replica_id == "r0"
    assert service.ask("chat", prompt=5000).replica_id == "lent"
    service.end(own, 1.0)
    assert service.ask("chat", prompt=5100, now_s=2.0).replica_id == "r0"


def test_a_session_stays_at_home_while_some_other_replica_is_avoided() -> None:
    """A breaker that is open for one replica puts it into `avoid` of all tickets: the other caches must not suffer."""
    service = Service(replicas=4)
    home = service.ask("chat", prompt=5000).replica_id
    away = next(f"r{number}" for number in range(4) if f"r{number}" != home)
    assert service.ask("chat", prompt=5100, now_s=1.0, avoid=(away,)).replica_id == home, "though it runs most"
    assert service.ask("chat", prompt=5200, now_s=2.0, avoid=(home,)).replica_id != home
    for number in range(10):
        assert service.ask(f"s{number}", now_s=3.0 + number, avoid=(home, away)).replica_id not in (home, away)


def test_a_prompt_goes_to_its_cache_while_some_other_replica_is_avoided() -> None:
    service = Service(replicas=4)
    document = tuple(range(40))
    holder = service.ask(None, prompt=40 * 64, prefix=document).replica_id
    away = next(f"r{number}" for number in range(4) if f"r{number}" != holder)
    assert service.ask(None, prompt=40 * 64, now_s=9.0, prefix=document, avoid=(away,)).replica_id == holder
    assert service.ask(None, prompt=40 * 64, now_s=18.0, prefix=document, avoid=(holder,)).replica_id != holder


shapes = st.tuples(st.integers(0, 3), st.booleans(), st.booleans())


@given(st.lists(shapes, min_size=1, max_size=4), st.sets(st.integers(0, 3)))
def test_whom_a_retry_avoids(fleet: list[tuple[int, bool, bool]], avoided: set[int]) -> None:
    """Against looking at everybody: own replicas first, the least loaded of those that have not failed it; one that has
    only if no other serves the class."""
    service = Service(replicas=0)
    for number, (running, lends, draining) in enumerate(fleet):
        serves = (SEMI, ONLINE) if lends else (ONLINE,)
        service.queue.put_replica(Replica(f"r{number}", "d", serves, 3, draining=draining), 0.0)
        leases = [Lease(f"{number}-{n}", ticket(None, 1), f"r{number}", 0.0) for n in range(running)]
        service.queue.recovery.restore([], leases, 0.0)
    avoid = tuple(f"r{number}" for number in avoided)
    able = [replica for replica in service.queue.replicas() if not replica.draining]
    able = [replica for replica in able if replica.replica_id not in avoid] or able
    free = [replica for replica in able if replica.free]
    before = {replica.replica_id: replica.running for replica in free}
    best = min(((len(replica.serves) > 1, replica.running) for replica in free), default=None)
    service.submit(None, avoid=avoid)
    granted = service.queue.grant(0.0)
    assert len(granted) == bool(free)
    for lease in granted:
        chosen = service.queue.replica(lease.replica_id)
        assert chosen is not None and (len(chosen.serves) > 1, before[lease.replica_id]) == best


class TestSiblings:
    """All slots taken: a slot that comes free goes to a session of the due ticket's flow that lives there."""

    def full(self, fairness: str = "vtc") -> tuple[Service, Lease, Lease]:
        service = Service(replicas=2, slots=1, fairness=fairness)
        one = service.ask("one", prompt=5000)
        other = service.ask("other", prompt=5000)
        assert one.replica_id != other.replica_id
        return service, one, other

    def test_each_goes_home(self) -> None:
        service, one, other = self.full()
        service.submit("other", 5100, 1.0)
        service.submit("one", 5100, 2.0)
        service.end(one, 3.0)
        (lease,) = service.queue.grant(3.0)
        assert (lease.ticket.session, lease.replica_id) == ("one", one.replica_id), "passes the older ticket"
        service.end(other, 4.0)
        (lease,) = service.queue.grant(4.0)
        assert (lease.ticket.session, lease.replica_id) == ("other", other.replica_id)

    def test_another_flows_ticket_does_not_pass(self) -> None:
        service, one, _ = self.full()
        service.submit("other", 5100, 1.0)
        service.submit("one", 5100, 2.0, key="another")
        service.end(one, 3.0)
        due = service.queue._lines.of(ONLINE).flows.head()
        (lease,) = service.queue.grant(3.0)
        assert due is not None and lease.ticket is due.ticket

    def test_an_earlier_deadline_is_not_passed(self) -> None:
        service, one, _ = self.full()
        service.submit("other", 5100, 1.0, deadline_at_s=50.0)
        service.submit("one", 5100, 2.0)
        service.end(one, 3.0)
        (lease,) = service.queue.grant(3.0)
        assert lease.ticket.session == "other"

    def test_a_ticket_is_passed_over_a_bounded_number_of_times(self) -> None:
        service, one, _ = self.full()
        waits = service.submit("other", 5100, 1.0)
        for number in range(2 * MOST_PASSES):
            service.submit("one", 5100, 2.0 + number * 1e-3)
        served = []
        lease = one
        for number in range(2 * MOST_PASSES):
            service.end(lease, 3.0 + number)
            (lease,) = service.queue.grant(3.0 + number)
            served.append(lease.ticket.ticket_id)
        assert served.index(waits) == MOST_PASSES


class TestRate:
    def test_it_is_learned_from_first_tokens_that_were_seen(self) -> None:
        service = Service(replicas=2)
        for number in range(100):
            now_s = 100.0 * number
            # Prefills at 500 tokens a second.
            lease = service.ask(f"s{number}", prompt=2000, now_s=now_s)
            service.end(lease, now_s + 10, first_token_s=4.0)
        assert service.queue._placement.backlog.rate("d").per_s == pytest.approx(500, rel=0.05)

    @given(st.floats(200, 100_000), st.integers(0, 2**16))
    @settings(max_examples=25, deadline=None)
    def test_it_finds_the_true_rate_under_any_load(self, true_per_s: float, seed: int) -> None:
        """One replica that prefills in turn; the queue sees only first tokens, late by up to a tenth."""
        rng = random.Random(seed)
        service = Service(replicas=1, slots=1000)
        service.queue.put_replica(Replica("other", "d", (SEMI,), 1), 0.0)
        now_s = free_at_s = 0.0
        running: list[tuple[float, Lease, float]] = []
        for number in range(400):
            tokens = rng.randint(300, 4000)
            now_s += rng.expovariate(0.7 * true_per_s / 2150)
            for entry in [entry for entry in running if entry[0] <= now_s]:
                service.end(entry[1], entry[0], entry[2])
                running.remove(entry)
            lease = service.ask(f"s{number}", prompt=tokens, now_s=now_s)
            free_at_s = max(free_at_s, now_s) + tokens / true_per_s
            first_token_s = (free_at_s - now_s) * rng.uniform(1.0, 1.1)
            running.append((free_at_s + rng.uniform(0, 20_000 / true_per_s), lease, first_token_s))
        assert service.queue._placement.backlog.rate("d").per_s == pytest.approx(true_per_s, rel=0.5)

    def test_short_prompts_and_impossible_times_say_nothing(self) -> None:
        rate = PrefillRate()
        rate.observe(100, 0.001)
        rate.observe(1000, 0.0)
        rate.observe(1000, -1.0)
        assert rate.per_s == FIRST_GUESS_PER_S


class TestPrompts:
    """What is believed of caches, and how far a common beginning draws requests together."""

    def test_a_conversation_beyond_the_hashed_blocks_is_taken_to_be_there(self) -> None:
        placement, _ = pair()
        blocks = tuple(range(BLOCKS_USED))
        placement.remember(ticket(None, 8000, blocks), "r0")
        hashed = BLOCKS_USED * BLOCK_TOKENS
        assert placement.cached_tokens(ticket(None, 8000, blocks), "r0") == hashed + int(0.9 * (8000 - hashed))
        assert placement.cached_tokens(ticket(None, 8000, blocks), "r1") == 0
        assert placement.cached_tokens(ticket(None, 3000, blocks[:40]), "r0") == 40 * BLOCK_TOKENS

    def test_of_a_known_session_only_what_was_hashed_is_taken_to_be_elsewhere(self) -> None:
        placement, _ = pair()
        blocks = tuple(range(BLOCKS_USED))
        placement.remember(ticket("other", 20_000, blocks), "r1")
        placement.remember(ticket("chat", 20_000, blocks), "r0")
        assert placement.cached_tokens(ticket("chat", 20_400, blocks), "r0") == 20_200
        assert placement.cached_tokens(ticket("chat", 20_400, blocks), "r1") == BLOCKS_USED * BLOCK_TOKENS

    def test_a_session_that_begins_anew_has_less_cached(self) -> None:
        placement, _ = pair()
        placement.remember(ticket("chat", 5000), "r0")
        assert placement.cached_tokens(ticket("chat", 600), "r0") == 600

    @pytest.mark.parametrize(("own_blocks", "gathers"), [(50, False), (2, True)])
    def test_a_system_prompt_gathers_few_and_a_document_all(self, own_blocks: int, gathers: bool) -> None:
        service = Service(replicas=4, slots=64)
        shared = tuple(range(10))
        places: Counter[str] = Counter()
        for number in range(40):
            own = tuple(range(1000 * (number + 1), 1000 * (number + 1) + own_blocks))
            prompt = (len(shared) + own_blocks) * BLOCK_TOKENS
            lease = service.ask(None, prompt, now_s=100.0 * number, prefix=(*shared, *own))
            places[lease.replica_id] += 1
        assert (len(places) == 1) == gathers and (gathers or max(places.values()) < 20)

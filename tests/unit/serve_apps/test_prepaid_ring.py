"""Unknown sessions and prepaid leases: all gateways put a session on the same replica, or ask."""

from __future__ import annotations

from collections import Counter
from typing import Any

from cluster.scheduling import ClassPolicy, Replica, RequestQueue, Ticket, TokenUsage
from cluster.vocabulary import RequestClass
from serve_apps.messages import PrepaidGrant
from serve_apps.prepaid_pool import ASKED_IN_VAIN, PrepaidPool

ONLINE, SEMI = RequestClass.ONLINE, RequestClass.SEMI_ONLINE
REPLICAS = ("r1", "r2", "r3", "r4")


def prepaid(lease_id: str, replica_id: str, serves: tuple[RequestClass, ...] = (ONLINE,)) -> PrepaidGrant:
    return PrepaidGrant(lease_id, replica_id, serves, "d", "http://r", "k")


def pool(*replicas: str, leases: int = 1) -> PrepaidPool:
    made = PrepaidPool()
    made.set_limited(frozenset())
    made.add([prepaid(f"{replica}-{n}", replica) for replica in replicas for n in range(leases)])
    return made


def ticket(session: str | None, **fields: Any) -> Ticket:
    return Ticket("t", "gw", "a", ONLINE, 1, 1, 0.0, session=session, **fields)


def test_two_gateways_and_the_dispatcher_choose_alike() -> None:
    first, second = pool(*REPLICAS, leases=200), pool(*reversed(REPLICAS), leases=200)
    queue = RequestQueue({ONLINE: ClassPolicy(9, 9)})
    for name in REPLICAS:
        queue.put_replica(Replica(name, "d", (ONLINE,), 64), 0.0)
    places: Counter[str] = Counter()
    for number in range(100):
        session, now_s = f"s{number}", float(number)
        one, other = first.take(ticket(session)), second.take(ticket(session))
        asked = Ticket(f"t{number}", "gw", "a", ONLINE, 1, 1, now_s, session=session)
        queue.submit(asked, now_s)
        (lease,) = queue.grant(now_s)
        queue.release(lease.lease_id, TokenUsage(1, 0, 1), now_s)
        assert one is not None and other is not None
        assert one.replica_id == other.replica_id == lease.replica_id
        places[one.replica_id] += 1
    assert len(places) == 4


def test_a_gateway_asks_when_it_holds_nothing_where_the_session_belongs() -> None:
    full, partial = pool(*REPLICAS, leases=200), pool(*REPLICAS)
    partial.recall(["r3-0", "r4-0"])
    for number in range(30):
        whole = full.take(ticket(f"s{number}"))
        assert whole is not None
        taken = partial.take(ticket(f"s{number}"))
        if taken is None:
            assert whole.replica_id in ("r3", "r4")
        else:
            assert taken.replica_id == whole.replica_id
            partial.add([prepaid(taken.lease_id, taken.replica_id)])


def test_what_never_comes_back_is_forgotten() -> None:
    held = pool("r1", "r2")
    held.recall(["r2-0"])
    sessions = [f"s{number}" for number in range(200)]
    asked = [s for s in sessions if held.take(ticket(s)) is None or held.add([prepaid("again", "r1")])]
    assert len(asked) == ASKED_IN_VAIN, "then all belong to the one that is left"
    held.add([prepaid("back", "r2")])
    places = Counter(grant.replica_id for s in sessions if (grant := held.take(ticket(f"new-{s}"))))
    assert set(places) == {"r1", "r2"}


def test_a_replica_that_took_no_connection_has_no_sessions() -> None:
    held = pool("r1", "r2", leases=100)
    assert len(held.drop_replica("r2")) == 100
    assert {grant.replica_id for n in range(50) if (grant := held.take(ticket(f"s{n}")))} == {"r1"}


def test_a_known_session_with_hashes_starts_at_once_and_an_unknown_one_asks() -> None:
    held = pool("r1", leases=2)
    assert held.take(ticket("s", prefix=(1, 2))) is None
    held.remember(ticket("s"), "r1")
    taken = held.take(ticket("s", prefix=(1, 2)))
    assert taken is not None and taken.replica_id == "r1"


def test_sessions_belong_to_own_replicas_while_there_are_any() -> None:
    held = PrepaidPool()
    held.set_limited(frozenset())
    held.add([prepaid(f"o{n}", "own") for n in range(50)])
    held.add([prepaid(f"l{n}", "lent", (SEMI, ONLINE)) for n in range(50)])
    assert {grant.replica_id for n in range(40) if (grant := held.take(ticket(f"s{n}")))} == {"own"}
    held.drop_replica("own")
    assert {grant.replica_id for n in range(40, 60) if (grant := held.take(ticket(f"s{n}")))} == {"lent"}


def test_a_replica_that_does_not_serve_the_class_is_not_taken() -> None:
    held = PrepaidPool()
    held.set_limited(frozenset())
    held.add([prepaid("p", "r1", (SEMI,))])
    held.remember(ticket("s"), "r1")
    for _ in range(2 * ASKED_IN_VAIN):
        assert held.take(ticket("s")) is None and held.take(ticket("stranger")) is None
    assert held.take(ticket(None)) is None and len(held) == 1

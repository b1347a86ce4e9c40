"""Prepaid leases between one or two gateways and the dispatcher."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cluster.scheduling import ClassPolicy, Replica, RequestQueue, TokenUsage
from cluster.vocabulary import RequestClass
from serve_apps.leases import RefusedError
from serve_apps.messages import Answers, PrepaidGrant
from serve_apps.prepaid_desk import PrepaidDesk
from serve_apps.prepaid_pool import PrepaidPool
from tests.unit.serve_apps.lease_floor import Floor, held, nothing
from tests.unit.serve_apps.servers import eventually

SLOTS = 16
TENANTS: dict[str, Any] = {"a": {}, "b": {}, "small": {"limits": {"max_concurrent": 2}}}


@contextlib.asynccontextmanager
async def opened(folder: Path, gateways: int = 1, slots: int = SLOTS, **sections: Any) -> AsyncIterator[Floor]:
    sections = {"deployment": {"max_running": slots}, "tenants": TENANTS, **sections}
    async with Floor(folder, gateways, **sections).open() as floor:
        await floor.replica("r0")
        yield floor


async def test_a_prepaid_lease_needs_no_call(tmp_path: Path) -> None:
    async with opened(tmp_path) as floor:
        (client,) = floor.clients
        await floor.prepaid(client)
        calls = floor.calls()
        grant = await floor.acquire(client)
        assert floor.calls() == calls  # there was no await between asking and having
        assert (grant.base_url, grant.api_key, grant.deployment) == ("http://r0", "k", "d")
        await eventually(lambda: [x.lease_id for x in floor.queue.leases()] == [grant.lease.lease_id])
        client.release(grant.lease.lease_id, TokenUsage(10, 0, 10))
        await eventually(lambda: not floor.queue.leases() and floor.in_step())


async def test_what_is_used_is_charged(tmp_path: Path) -> None:
    async with opened(tmp_path) as floor:
        (client,) = floor.clients
        await floor.prepaid(client)
        before = floor.queue.counters()["online"]["a"]
        grant = await floor.acquire(client)
        client.release(grant.lease.lease_id, TokenUsage(100, 0, 50))  # used and over within one message
        await eventually(lambda: floor.queue.counters()["online"]["a"] == before + 200)


async def test_a_reserve_is_left_for_others(tmp_path: Path) -> None:
    async with opened(tmp_path, gateways=2) as floor:
        first, second = floor.clients
        for _ in range(30):
            await asyncio.gather(*(floor.run(first) for _ in range(8)))
        await eventually(lambda: len(first._pool) > 4)
        assert len(first._pool) <= SLOTS - SLOTS // 4
        async with asyncio.timeout(0.15):  # before a tick could have shared anew
            await floor.acquire(second, "b")


async def test_recalled_as_soon_as_somebody_waits(tmp_path: Path) -> None:
    async with opened(tmp_path, gateways=2, slots=8) as floor:
        first, second = floor.clients
        await floor.prepaid(first)
        assert len(first._pool)
        grants = await asyncio.gather(*(floor.acquire(second, "b") for _ in range(8)))
        assert len(grants) == 8 and not len(first._pool)
        await eventually(floor.in_step)
        waiting = asyncio.create_task(floor.acquire(first))
        await eventually(lambda: floor.queue.waiting("online") == 1)
        await asyncio.sleep(0.5)
        assert not len(first._pool) and not len(second._pool)  # none while somebody waits
        second.release(grants[0].lease.lease_id, TokenUsage(10, 0, 10))
        await waiting


async def test_use_wins_over_recall(tmp_path: Path) -> None:
    async with opened(tmp_path) as floor:
        (client,) = floor.clients
        await floor.prepaid(client)
        lease_ids = held(client)
        grant = await floor.acquire(client)
        client._apply(Answers(recall=sorted(lease_ids)))
        assert grant.lease.lease_id not in client._out.returned and not len(client._pool)
        assert set(client._out.returned) == lease_ids - {grant.lease.lease_id}
        await eventually(lambda: [x.lease_id for x in floor.queue.leases()] == [grant.lease.lease_id])
        client.release(grant.lease.lease_id, None)
        await eventually(floor.in_step)


async def test_a_recall_that_overtakes_its_lease(tmp_path: Path) -> None:
    """The answers of two calls may come in any order."""
    async with opened(tmp_path) as floor:
        (client,) = floor.clients
        await floor.prepaid(client)
        kept = [client._pool.take(floor.ticket(client)) for _ in range(len(client._pool))]
        floor.dispatcher._office._recall(floor.dispatcher._office.prepaid.recall_from("r0"))
        await asyncio.sleep(0.05)
        client._apply(Answers(prepaid=[grant for grant in kept if grant]))  # only now
        await eventually(floor.in_step)
        assert not floor.queue.leases()


async def test_an_idle_gateway_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_apps.prepaid_desk.IDLE_S", 0.3)
    async with opened(tmp_path) as floor:
        await floor.prepaid(floor.clients[0])
        await eventually(lambda: not len(floor.clients[0]._pool) and floor.in_step())
        assert floor.queue.replicas()[0].running == 0


@pytest.mark.parametrize("method", ["exchange", "next_answers"])
async def test_lost_messages_leave_no_slot_behind(tmp_path: Path, method: str) -> None:
    async with opened(tmp_path) as floor:
        (client,) = floor.clients
        for _ in range(3):
            await floor.prepaid(client)
            floor.handle.lose_answers(method)
            await asyncio.gather(*(floor.run(client, hold_s=0.01) for _ in range(10)))
        await eventually(floor.in_step)
        assert not floor.queue.leases()


async def test_used_while_the_dispatcher_dies(tmp_path: Path) -> None:
    async with opened(tmp_path) as floor:
        (client,) = floor.clients
        await floor.prepaid(client)
        grant = await floor.acquire(client)
        floor.handle.kill()  # before it could learn of it
        await floor.restart(0.1)
        await eventually(lambda: [x.lease_id for x in floor.queue.leases()] == [grant.lease.lease_id])
        await eventually(floor.in_step)
        client.release(grant.lease.lease_id, TokenUsage(10, 0, 10))
        await eventually(lambda: not floor.queue.leases())


async def test_a_draining_replica_gets_its_prepaid_leases_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as floor:
        (client,) = floor.clients
        await floor.prepaid(client)
        await floor.replica("r0", state="draining")
        await eventually(lambda: not len(client._pool) and floor.queue.replicas()[0].running == 0)


async def test_used_on_a_replica_that_is_gone(tmp_path: Path) -> None:
    lost: list[str] = []
    async with opened(tmp_path) as floor:
        (client,) = floor.clients
        await floor.prepaid(client)
        ticket = floor.ticket(client)
        grant = await client.acquire(ticket, lambda: lost.append("lost"), 5)
        floor.dispatcher._office.drop_replica("r0")  # in the same turn: it cannot know of the use
        await eventually(lambda: bool(lost))
        client.release(grant.lease.lease_id, None)
        await eventually(floor.in_step)


async def test_a_tenant_with_limits_always_asks(tmp_path: Path) -> None:
    async with opened(tmp_path) as floor:
        (client,) = floor.clients
        await floor.prepaid(client)
        first = [await floor.acquire(client, "small") for _ in range(2)]
        third = asyncio.create_task(floor.acquire(client, "small"))
        await asyncio.sleep(0.1)
        assert not third.done() and floor.queue.waiting("online") == 1
        client.release(first[0].lease.lease_id, TokenUsage(1, 0, 1))
        await third


async def test_new_limits_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_apps.tenant_feed.REFRESH_S", 0.1)
    async with opened(tmp_path) as floor:
        (client,) = floor.clients
        assert await floor.acquire(client, "b")
        await floor.prepaid(client)
        stored = floor.dispatcher._store.tenants()
        limited = {**stored, "b": {**stored["b"], "limits": {"requests_per_minute": 1}}}
        monkeypatch.setattr(floor.dispatcher._store, "tenants", lambda: limited)
        await eventually(lambda: "b" in floor.dispatcher._office.limited)
        await eventually(lambda: client._pool._limited == frozenset({"b", "small"}))
        await floor.acquire(client, "b")
        with pytest.raises(RefusedError, match="requests_per_minute"):
            await floor.acquire(client, "b")


async def test_a_session_goes_home(tmp_path: Path) -> None:
    async with opened(tmp_path) as floor:
        await floor.replica("r1")
        (client,) = floor.clients
        home = (await floor.run(client, session="s")).lease.replica_id
        await floor.prepaid(client)
        for _ in range(20):
            assert (await floor.run(client, session="s")).lease.replica_id == home
            await floor.run(client)


async def test_two_gateways_of_one_tenant_get_no_more(tmp_path: Path) -> None:
    """Service is equal for two tenants although one of them uses both gateways."""
    async with opened(tmp_path, gateways=2, slots=4) as floor:
        first, second = floor.clients
        served: Counter[str] = Counter()
        over = asyncio.Event()

        async def ask(client: Any, tenant: str) -> None:
            while not over.is_set():
                await floor.run(client, tenant, hold_s=0.005)
                served[tenant] += 1

        users = [(first, "a")] * 12 + [(second, "a")] * 12 + [(second, "b")] * 8
        tasks = [asyncio.create_task(ask(*user)) for user in users]
        await asyncio.sleep(0.3)
        served.clear()
        await asyncio.sleep(1.5)
        counts = dict(served)
        over.set()
        await asyncio.gather(*tasks)
        assert counts["a"] + counts["b"] > 200
        assert 0.9 < counts["a"] / counts["b"] < 1.1, counts


async def test_limits_are_global(tmp_path: Path) -> None:
    """A tenant that uses two gateways runs no more at once than its limit."""
    async with opened(tmp_path, gateways=2) as floor:
        running = peak = 0

        async def ask(client: Any) -> None:
            nonlocal running, peak
            grant = await client.acquire(floor.ticket(client, "small"), nothing, 10)
            running += 1
            peak = max(peak, running)
            await asyncio.sleep(0.01)
            running -= 1
            client.release(grant.lease.lease_id, TokenUsage(1, 0, 1))

        await asyncio.gather(*(ask(client) for client in floor.clients * 20))
        assert peak == 2


def prepaid(lease_id: str, replica_id: str = "r", serves: tuple[Any, ...] = ("online",)) -> PrepaidGrant:
    return PrepaidGrant(lease_id, replica_id, serves, "d", "http://r", "k")


class TestPool:
    def ticket(self, **fields: Any) -> Any:
        from cluster.scheduling import Ticket
        from cluster.vocabulary import RequestClass

        tier = RequestClass(fields.pop("tier", "online"))
        return Ticket("t", "gw", fields.pop("tenant", "a"), tier, 1, 1, 0.0, **fields)

    def pool(self, *grants: PrepaidGrant) -> PrepaidPool:
        pool = PrepaidPool(max_sessions=2)
        pool.set_limited(frozenset({"small"}))
        pool.add(grants)
        return pool

    def test_nobody_is_served_before_limits_are_known(self) -> None:
        pool = PrepaidPool()
        pool.add([prepaid("p")])
        assert pool.take(self.ticket()) is None and len(pool) == 1

    @pytest.mark.parametrize(
        "fields", [{"tenant": "small"}, {"tier": "offline"}, {"avoid": ("r",)}, {"prefix": (1, 2)}], ids=str
    )
    def test_who_has_to_ask(self, fields: dict[str, Any]) -> None:
        pool = self.pool(prepaid("p"))
        assert pool.take(self.ticket(**fields)) is None and len(pool) == 1

    def test_own_class_before_a_lent_slot(self) -> None:
        lent, own = prepaid("p1", "r1", ("semi_online", "online")), prepaid("p2", "r2", ("online",))
        pool = self.pool(lent, own)
        assert [pool.take(self.ticket()) for _ in range(3)] == [own, lent, None]

    def test_the_replica_with_most_left(self) -> None:
        pool = self.pool(prepaid("p1", "r1"), prepaid("p2", "r2"), prepaid("p3", "r2"))
        taken = pool.take(self.ticket())
        assert taken is not None and taken.replica_id == "r2"

    def test_a_session_does_not_move(self) -> None:
        pool = self.pool(prepaid("p1", "r1"), prepaid("p2", "r2"))
        pool.remember(self.ticket(session="s"), "r3")
        assert pool.take(self.ticket(session="s")) is None
        assert pool.take(self.ticket(session="s", tenant="b")) is not None  # a neighbour's session of the same name

    def test_sessions_are_forgotten_in_order(self) -> None:
        pool = self.pool(prepaid("p1", "r1"))
        for number in range(3):
            pool.remember(self.ticket(session=f"s{number}"), "elsewhere")
        assert pool.take(self.ticket(session="s2")) is None
        assert pool.take(self.ticket(session="s0")) is not None


async def test_only_on_replicas_for_what_the_gateway_starts(tmp_path: Path) -> None:
    other = {"model": "m", "serves": ["semi_online"], "engine": {"kind": "vllm"}, "max_running": SLOTS}
    d = {"model": "m", "serves": ["online"], "engine": {"kind": "vllm"}, "max_running": SLOTS}
    async with Floor(tmp_path, 1, deployments={"d": d, "o": other}, tenants=TENANTS).open() as floor:
        await floor.replica("r0")
        await floor.replica("o0", deployment="o")
        (client,) = floor.clients
        for _ in range(20):
            await asyncio.gather(*(floor.run(client) for _ in range(8)))
        await eventually(lambda: len(client._pool) > 4)
        assert len(client._pool) <= SLOTS - SLOTS // 4, "the reserve is one of the replicas that it can use"
        assert {p.replica_id for p in client._pool.held_by("")} == {"r0"}
        await floor.run(client, tier="semi_online")
        await eventually(lambda: any(p.replica_id == "o0" for p in floor.queue.prepaid_of("gw-0")))


async def test_what_it_starts_no_more_of_is_given_back(tmp_path: Path) -> None:
    queue = RequestQueue({c: ClassPolicy(9, 9) for c in RequestClass})
    queue.put_replica(Replica("on", "d", (RequestClass.ONLINE,), 8), 0.0)
    queue.put_replica(Replica("off", "d", (RequestClass.OFFLINE,), 8), 0.0)
    desk = PrepaidDesk(queue)
    desk.started("gw", [RequestClass.OFFLINE] * 20, 0.0)
    desk.retarget(0.0)
    given = desk.refill("gw", 0.0)
    assert len(given) >= 2 and {p.replica_id for p in given} == {"off"}
    desk.started("gw", [RequestClass.ONLINE], 6.0)
    assert desk.retarget(6.0) == {"gw": [p.lease_id for p in given]}
    assert {p.replica_id for p in desk.refill("gw", 6.0)} == {"on"}


def test_what_a_gateway_lacks_is_counted_without_looking_at_every_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for with each of the gateway's messages."""
    queue = RequestQueue({RequestClass.ONLINE: ClassPolicy(9, 9)})
    for number in range(8):
        queue.put_replica(Replica(f"r{number}", "d", (RequestClass.ONLINE,), 4, draining=number > 5), 0.0)
    desk = PrepaidDesk(queue)
    desk.started("gw", [RequestClass.ONLINE] * 1000, 0.0)
    desk.retarget(0.0)
    monkeypatch.setattr(queue, "replicas", None)
    assert 17 <= len(desk.refill("gw", 0.0)) <= 24 - 24 // 4, "all but the reserve; those that drain do not count"


async def test_a_hello_leaves_nothing_on_a_replica_that_drains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_apps.prepaid_desk._Account.wish", lambda *_: 6)
    monkeypatch.setattr("serve_apps.prepaid_desk.IDLE_S", 100.0)
    async with opened(tmp_path) as floor:
        await floor.replica("r1")
        (client,) = floor.clients
        await floor.prepaid(client, at_least=6)

        def on_r0() -> int:
            return sum(p.replica_id == "r0" for p in client._pool.held_by(""))

        assert on_r0()
        pool, client._pool = client._pool, PrepaidPool()  # the recall does not reach what it holds
        await floor.replica("r0", state="draining")
        await asyncio.sleep(0.3)
        client._pool = pool
        floor.handle.lose_answers("exchange")
        client._out.progress["unknown"] = 1
        client._tell()
        await eventually(lambda: not on_r0() and floor.in_step())

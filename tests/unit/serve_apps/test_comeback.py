"""A restarted dispatcher with several gateways: nobody is overtaken, no slot is given out twice, counters go on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.scheduling import TokenUsage
from serve_apps.comeback import Comeback
from serve_apps.leases import LeaseClient, RefusedError
from serve_apps.messages import Grant, Hello, Memory
from serve_apps.replica_book import ReplicaBook
from tests.unit.serve_apps.harness import configuration
from tests.unit.serve_apps.lease_floor import Floor
from tests.unit.serve_apps.servers import eventually


@contextlib.asynccontextmanager
async def opened(folder: Path, slots: int = 1) -> AsyncIterator[Floor]:
    async with Floor(folder, 2, deployment={"max_running": slots}, tenants={"a": {}, "b": {}}).open() as floor:
        await floor.replica("r0")
        await eventually(lambda: all(c._memory and len(c._memory.gateways) == 2 for c in floor.clients))
        yield floor


class Late:
    """Holds back what one gateway says."""

    def __init__(self, client: LeaseClient) -> None:
        self._client = client
        self._dispatcher = client._dispatcher
        self.free = asyncio.Event()
        client._dispatcher = self

    def __getattr__(self, name: str) -> Any:
        class Method:
            def remote(_, *args: Any) -> Any:
                async def call() -> Any:
                    await self.free.wait()
                    return await getattr(self._dispatcher, name).remote(*args)

                return asyncio.ensure_future(call())

        return Method()


async def waiting(floor: Floor, clients: list[LeaseClient], tenant: str = "a") -> list[asyncio.Task[Grant]]:
    """One request of each of `clients`, in that order, all waiting."""
    tasks = []
    for client in clients:
        count = len(floor.queue._waiting)
        tasks.append(asyncio.create_task(floor.acquire(client, tenant)))
        await eventually(lambda n=count: len(floor.queue._waiting) == n + 1)
    return tasks


async def test_the_order_of_arrival_holds_across_gateways(tmp_path: Path) -> None:
    async with opened(tmp_path) as floor:
        first, second = floor.clients
        running = await floor.acquire(first)
        tasks = await waiting(floor, [first, second] * 4)
        first.release(running.lease.lease_id, TokenUsage(1, 0, 1))
        served: list[int] = []

        async def serve(number: int) -> None:
            grant = await tasks[number]
            served.append(number)
            floor.clients[number % 2].release(grant.lease.lease_id, TokenUsage(1, 0, 1))

        servers = [asyncio.create_task(serve(number)) for number in range(8)]
        await eventually(lambda: len(served) >= 2)
        await floor.restart(0.05)
        await asyncio.gather(*servers)
        assert served == list(range(8))
        await eventually(floor.in_step)


async def test_it_waits_for_the_gateway_that_comes_last(tmp_path: Path) -> None:
    """Its request is the oldest, and its other request runs in the only slot."""
    async with opened(tmp_path) as floor:
        first, second = floor.clients
        running = await floor.acquire(second)
        (oldest,) = await waiting(floor, [second])
        (younger,) = await waiting(floor, [first])
        late = Late(second)
        await floor.restart()
        await eventually(lambda: len(floor.queue._waiting) == 1 and bool(floor.queue.replicas()))
        await asyncio.sleep(0.3)
        assert not younger.done()  # a slot is free as far as the dispatcher can know
        late.free.set()
        await eventually(lambda: len(floor.queue._waiting) == 2)
        assert not younger.done() and not oldest.done()
        second.release(running.lease.lease_id, TokenUsage(1, 0, 1))
        grant = await oldest
        assert not younger.done()
        second.release(grant.lease.lease_id, TokenUsage(1, 0, 1))
        await younger


async def test_it_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_apps.comeback.PATIENCE_S", 0.3)
    async with opened(tmp_path) as floor:
        Late(floor.clients[1])  # died together with the dispatcher
        await floor.restart()
        async with asyncio.timeout(2):
            await floor.run(floor.clients[0])


async def test_counters_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has had more before the restart is still behind the other after it."""
    monkeypatch.setattr("serve_apps.dispatcher.MEMORY_S", 0.0)
    async with opened(tmp_path) as floor:
        first, second = floor.clients
        blocker = await floor.acquire(first, "a")
        ahead = await waiting(floor, [first] * 3)
        (running, *behind) = await waiting(floor, [second] * 4, "b")
        first.release(blocker.lease.lease_id, TokenUsage(1000, 0, 0))  # what `a` has had: far more than predicted
        lease_id = (await running).lease.lease_id
        before = floor.queue.counters()["online"]
        assert before["a"] > before["b"] + 900
        told = floor.queue.counters_snapshot()["classes"]
        await eventually(lambda: all(c._memory and c._memory.counters["classes"] == told for c in floor.clients))
        await floor.restart(0.05)
        await eventually(lambda: len(floor.queue._waiting) == 6)
        after = floor.queue.counters()["online"]
        # What runs is predicted anew.
        assert after["a"] == before["a"] > after["b"] + 900 and after["b"] >= before["b"]
        second.release(lease_id, TokenUsage(10, 0, 10))
        for task in (*behind, *ahead):  # `b` has the younger requests
            grant = await task
            assert floor.queue.waiting("online") == 5 - (*behind, *ahead).index(task)
            client = first if task in ahead else second
            client.release(grant.lease.lease_id, TokenUsage(10, 0, 10))


async def test_what_it_has_said_itself_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path, slots=4) as floor:
        client = floor.clients[0]
        await floor.run(client)
        await eventually(lambda: not floor.queue.leases())
        assert client._memory is not None
        before = floor.queue.counters()["online"]
        # Higher than the truth, as after a correction at the end of a request.
        high = floor.queue.counters_snapshot()
        await floor.run(client, "a", output=500)
        client._memory = Memory(floor.dispatcher._life, client._memory.gateways, high)
        floor.handle.lose_answers("exchange")
        await floor.run(client)
        await eventually(lambda: floor.handle.called["hello"] > 2 and not floor.queue.leases())
        assert floor.queue.counters()["online"]["a"] <= before["a"] + 60


@pytest.mark.parametrize(
    ("restarted", "hellos", "over"),
    [
        (False, [], True),
        (True, [], False),
        (True, [("a", ())], False),  # a new gateway: who was here before is still to come
        (True, [("a", ("a", "b"))], False),
        (True, [("a", ("a", "b")), ("b", ("a", "b"))], True),
        (True, [("a", ("a",))], True),
        (False, [("a", ("a", "b"))], False),
        (True, [("b", ()), ("a", ("a", "b"))], True),
    ],
)
def test_when_it_is_over(restarted: bool, hellos: list[tuple[str, tuple[str, ...]]], over: bool) -> None:
    comeback = Comeback(restarted, 100.0)
    for gateway, others in hellos:
        comeback.hello(gateway, others)
    assert comeback.is_over(100.5) is over and comeback.is_over(101.0)


def test_a_gateway_that_leaves_is_not_missed() -> None:
    comeback = Comeback(True, 100.0)
    comeback.hello("a", ("a", "b"))
    comeback.goodbye("b")
    assert comeback.is_over(100.1)


def with_offline(floor: Floor) -> dict[str, Any]:
    return configuration(floor.folder, deployment={"serves": ["online", "offline"], "max_running": 2})


async def test_the_latest_configuration_outlives_a_kill(tmp_path: Path) -> None:
    """Ray starts the actor with the configuration with which it was created."""
    async with opened(tmp_path) as floor:
        await floor.handle.configure.remote(with_offline(floor))
        assert [r.max_running for r in floor.queue.replicas()] == [2]
        client = floor.clients[0]
        await eventually(lambda: all(c._memory and c._memory.configured_at_s > 0 for c in floor.clients))
        await floor.restart()
        assert (await floor.run(client, tier="offline")).lease.replica_id == "r0"
        assert [r.max_running for r in floor.queue.replicas()] == [2]
        await eventually(lambda: bool(client._memory and client._memory.life == floor.dispatcher._life))
        await floor.restart()  # and a second one
        await floor.run(client, tier="offline")


async def test_an_older_configuration_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as floor:
        dispatcher = floor.dispatcher
        await dispatcher.configure(with_offline(floor))
        memory = dispatcher._memory
        assert memory.config == with_offline(floor)
        for config, at_s in ((floor.config, memory.configured_at_s - 1), ({"models": "?"}, memory.configured_at_s + 1)):
            old = Memory("before", frozenset(), memory.counters, config, at_s)
            await dispatcher.hello(Hello("gw-9", memory=old))
            assert dispatcher._configured == memory.config


async def test_a_configuration_holds_although_the_store_is_away(tmp_path: Path) -> None:
    async with opened(tmp_path) as floor:

        def away() -> Any:
            raise OSError("away")

        floor.dispatcher._store.tenants = away  # type: ignore[method-assign]
        refused = await asyncio.gather(floor.run(floor.clients[0], tier="offline"), return_exceptions=True)
        assert isinstance(refused[0], RefusedError)
        scalers = floor.dispatcher._scaling._scalers
        before = await floor.dispatcher.desired_replicas("d", 1, ()), scalers["d"]
        await floor.dispatcher.configure(with_offline(floor))
        await floor.run(floor.clients[0], tier="offline")
        assert (await floor.dispatcher.desired_replicas("d", 1, ()))[0] == before[0][0]
        assert scalers["d"] is not before[1], "other slots: other bounds"
        kept = scalers["d"]
        await floor.dispatcher.configure(with_offline(floor))
        await floor.dispatcher.desired_replicas("d", 1, ())
        assert scalers["d"] is kept, "it remembers what was needed lately"


def test_a_dispatcher_that_was_late_calls_no_replica_unseen() -> None:
    book = ReplicaBook()
    assert not book.unseen(["r"], 100.0)
    book.excuse(50.0)
    assert not book.unseen(["r"], 151.0)
    assert book.unseen(["r"], 157.0) == {"r"}


async def test_progress_is_brought_back_with_what_runs(tmp_path: Path) -> None:
    """Else all that was produced before would be taken for the work of the first quarter second."""
    async with opened(tmp_path, slots=2) as floor:
        client = floor.clients[0]
        lease_id = (await floor.acquire(client, output=1000)).lease.lease_id

        def reported() -> int:
            running = floor.queue._desk.book.running.get(lease_id)
            return running.reported_output if running is not None else 0

        client.watch(lease_id, SimpleNamespace(output_tokens=500))
        await eventually(lambda: reported() == 500)
        await floor.restart(0.05)
        await eventually(lambda: len(floor.queue.leases()) == 1)
        assert reported() == 500

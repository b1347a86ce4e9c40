"""The gateway's end of the queue on its own: the moments in which news cross."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cluster.scheduling import Lease, Refusal, Ticket
from cluster.vocabulary import RequestClass
from serve_apps.dispatcher import Dispatcher
from serve_apps.leases import LeaseClient, RefusedError
from serve_apps.messages import Answers, Grant, Hello, ReplicaReport
from tests.unit.serve_apps.adapter import Handle
from tests.unit.serve_apps.harness import configuration
from tests.unit.serve_apps.lease_floor import Floor
from tests.unit.serve_apps.servers import eventually


def ticket(name: str) -> Ticket:
    return Ticket(name, "gw", "t", RequestClass.ONLINE, 1, 1, time.time())


def grant(name: str) -> Grant:
    return Grant(Lease(f"lease-{name}", ticket(name), "replica", time.time()), "d", "http://nowhere", "key")


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[LeaseClient]:
    from cluster.state import Store

    config = configuration(tmp_path)
    Store(config["state"]["url"]).create()
    handle = Handle(Dispatcher(config, "m"))
    client = LeaseClient(handle, "gw")
    client.start()
    yield client
    await client.close()
    handle.kill()


def nothing() -> None:
    pass


async def test_a_grant_and_its_loss_in_one_answer(client: LeaseClient) -> None:
    lost: list[str] = []
    task = asyncio.create_task(client.acquire(ticket("t1"), lambda: lost.append("t1"), 5))
    await asyncio.sleep(0.05)
    client._apply(Answers(grants=[grant("t1")], lost=["lease-t1"]))
    assert (await task).lease.lease_id == "lease-t1" and lost == ["t1"]


async def test_a_grant_that_nobody_has_taken_yet_is_in_a_hello(client: LeaseClient) -> None:
    task = asyncio.create_task(client.acquire(ticket("t1"), nothing, 5))
    await asyncio.sleep(0.05)
    client._apply(Answers(grants=[grant("t1")]))
    assert list(client._held) == ["lease-t1"]  # before the request's task had its turn
    await task


async def test_a_grant_for_one_who_just_left_goes_back(client: LeaseClient) -> None:
    task = asyncio.create_task(client.acquire(ticket("t1"), nothing, 5))
    await asyncio.sleep(0.05)
    for loop in client._tasks:
        loop.cancel()  # what there is to send stays to be seen
    client._apply(Answers(grants=[grant("t1")]))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ("lease-t1", None) in client._out.releases and not client._held and not client._waiting


async def test_grants_and_refusals_for_strangers(client: LeaseClient) -> None:
    client._apply(Answers(grants=[grant("who")], refusals=[Refusal("who", 503, "c", "m")], lost=["lease-who"]))
    assert client._out.releases == [("lease-who", None)] and not client._held


async def test_a_refusal_reaches_the_one_who_waits(client: LeaseClient) -> None:
    task = asyncio.create_task(client.acquire(ticket("t1"), nothing, 5))
    await asyncio.sleep(0.05)
    client._apply(Answers(refusals=[Refusal("t1", 429, "queue_full", "full", 2.0)]))
    with pytest.raises(RefusedError) as caught:
        await task
    assert caught.value.refusal.status == 429 and not client._waiting


async def test_patience_has_an_end(client: LeaseClient) -> None:
    with pytest.raises(RefusedError) as caught:
        await client.acquire(ticket("t1"), nothing, 0.1)
    assert (caught.value.refusal.status, caught.value.refusal.code) == (503, "dispatcher_unavailable")
    dispatcher = client._dispatcher.actor.instance
    await eventually(lambda: not dispatcher._queue._waiting)


async def test_releasing_twice_is_once(client: LeaseClient) -> None:
    task = asyncio.create_task(client.acquire(ticket("t1"), nothing, 5))
    await asyncio.sleep(0.05)
    client._apply(Answers(grants=[grant("t1")]))
    await task
    client.release("lease-t1", None)
    client.release("lease-t1", None)
    assert client._out.releases == [("lease-t1", None)]


async def test_a_hello_ends_the_polls_before_it(client: LeaseClient) -> None:
    """Their callers may be gone, and what they would take would be lost."""
    dispatcher: Dispatcher = client._dispatcher.actor.instance
    await dispatcher.hello(Hello("gw-2"))
    before = asyncio.create_task(dispatcher.next_answers("gw-2", 5))
    await asyncio.sleep(0.01)
    waiting = Ticket("t1", "gw-2", "t", RequestClass.ONLINE, 1, 1, time.time())
    assert not (await dispatcher.hello(Hello("gw-2", [waiting]))).grants
    # In the same turn of the loop, before the old poll has its turn:
    await dispatcher.report(
        ReplicaReport(replica_id="r", deployment="d", state="ready", started_at_s=time.time(), base_url="http://r")
    )
    async with asyncio.timeout(1):
        assert not await before
        assert [g.lease.ticket for g in (await dispatcher.next_answers("gw-2", 1)).grants] == [waiting]


async def test_what_was_never_sent_is_asked_for_and_not_brought_back(tmp_path: Path) -> None:
    """Limits hold for requests that come while the dispatcher is away; those that waited before keep their place."""
    tenants = {"a": {}, "strict": {"limits": {"requests_per_minute": 2}}}
    async with Floor(tmp_path, 1, tenants=tenants, deployment={"max_running": 1}).open() as floor:
        await floor.replica("r0")
        (client,) = floor.clients
        await floor.acquire(client)
        before = asyncio.create_task(floor.acquire(client))
        await eventually(lambda: floor.queue.waiting("online") == 1)
        floor.handle.kill()
        await eventually(lambda: not client._in_touch.is_set())
        tasks = [asyncio.create_task(floor.acquire(client, "strict")) for _ in range(5)]
        await asyncio.sleep(0.3)
        await floor.restart()
        await eventually(lambda: sum(task.done() for task in tasks) == 3)
        refused = [task.exception() for task in tasks if task.done()]
        assert all(isinstance(e, RefusedError) and e.refusal.code == "rate_limit_exceeded" for e in refused)
        await eventually(floor.in_step)
        assert floor.queue.waiting("online") == 3
        for task in (before, *tasks):
            task.cancel()
        await asyncio.gather(before, *tasks, return_exceptions=True)


async def test_a_message_that_was_not_looked_at_is_sent_again(client: LeaseClient) -> None:
    dispatcher: Dispatcher = client._dispatcher.actor.instance
    await eventually(lambda: "gw" in dispatcher._office.gateways)
    await dispatcher.goodbye("gw")
    restored: list[Ticket] = []
    restore = dispatcher._queue.recovery.restore

    def spy(waiting: Any, *args: Any) -> Any:
        restored.extend(waiting)
        return restore(waiting, *args)

    dispatcher._queue.recovery.restore = spy  # type: ignore[method-assign, assignment]
    task = asyncio.create_task(client.acquire(ticket("t1"), nothing, 5))
    await eventually(lambda: dispatcher._queue.waiting(RequestClass.ONLINE) == 1)
    assert not restored, "a submit, with all its limits"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_waiting_request_of_a_class_that_is_gone_is_told(client: LeaseClient) -> None:
    dispatcher: Dispatcher = client._dispatcher.actor.instance
    lost = Ticket("t1", "gw-2", "t", RequestClass.OFFLINE, 1, 1, time.time())
    answers = await dispatcher.hello(Hello("gw-2", [lost]))
    assert [r.code for r in answers.refusals] == ["class_not_served"]

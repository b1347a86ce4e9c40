"""What the queue learns from the store: weights, limits, the day's spending; and refusals that carry it to clients."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.scheduling import ClassPolicy, RequestQueue, ServiceWeights, Ticket
from cluster.state import Spent
from cluster.vocabulary import RequestClass
from serve_apps.leases import RefusedError
from serve_apps.tenant_feed import TenantFeed
from tests.unit.serve_apps.lease_floor import Floor
from tests.unit.serve_apps.servers import eventually

WEIGHTS = ServiceWeights(3.0, 7.0)


class Shelf:
    """A store with nothing but tenants and spending."""

    def __init__(self, **tenants: Any) -> None:
        self.stored = tenants
        self.spent: dict[str, Spent] = {}
        self.asked = 0

    def tenants(self) -> dict[str, Any]:
        return self.stored

    def spent_today(self, now_s: float, weights: ServiceWeights) -> dict[str, Spent]:
        assert abs(now_s - time.time()) < 60 and weights == WEIGHTS
        self.asked += 1
        return self.spent


def feed_of(shelf: Shelf) -> tuple[TenantFeed, RequestQueue]:
    queue = RequestQueue({RequestClass.ONLINE: ClassPolicy(100, 60)})
    return TenantFeed(shelf, queue, WEIGHTS), queue  # type: ignore[arg-type]


def ticket(tenant: str) -> Ticket:
    return Ticket(f"{tenant}-{time.time()}", "gw", tenant, RequestClass.ONLINE, 10, 10, time.time())


async def test_who_has_limits() -> None:
    shelf = Shelf(free={}, weighted={"weight": 3, "limits": {"max_queued": None}}, held={"limits": {"max_queued": 0}})
    feed, _ = feed_of(shelf)
    await feed.refresh()
    assert feed.limited == {"held"}
    before = feed.limited
    await feed.refresh()
    assert feed.limited is before  # nothing to tell
    shelf.stored = {"free": {"limits": {"usd_per_day": 1.0}}, "held": {"limits": {}}}
    await feed.refresh()
    assert feed.limited == {"free"}


async def test_a_spent_budget_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(rich={}, poor={"limits": {"tokens_per_day": 1000}}, broke={"limits": {"usd_per_day": 2.0}})
    feed, queue = feed_of(shelf)
    await feed.refresh()
    assert shelf.asked == 1
    assert queue.submit(ticket("poor"), time.time()) is None
    shelf.spent = {"rich": Spent(10**9, 10**6), "poor": Spent(2000, 0.1), "broke": Spent(1, 2.5)}
    await feed.refresh()
    assert shelf.asked == 1  # not at every refresh: sums over the ledger cost something
    monkeypatch.setattr("serve_apps.tenant_feed.SPENDING_REFRESH_S", 0.0)
    await feed.refresh()
    for tenant in ("poor", "broke"):
        refusal = queue.submit(ticket(tenant), time.time())
        assert refusal is not None and (refusal.status, refusal.code) == (429, "insufficient_quota")
        assert refusal.retry_after_s is not None and 0 < refusal.retry_after_s <= 86_400
    assert queue.submit(ticket("rich"), time.time()) is None


async def test_without_budgets_the_ledger_is_left_alone() -> None:
    shelf = Shelf(a={"limits": {"max_concurrent": 3}})
    feed, _ = feed_of(shelf)
    await feed.refresh()
    assert shelf.asked == 0


async def test_rate_limits_come_with_grants_and_refusals(tmp_path: Path) -> None:
    tenants = {"small": {"limits": {"requests_per_minute": 2}}, "free": {}}
    async with Floor(tmp_path, 1, tenants=tenants).open() as floor:
        await floor.replica("r0")
        (client,) = floor.clients
        await eventually(lambda: floor.dispatcher._office.limited == {"small"})
        grant = await floor.run(client, "small")
        assert grant.rate_limits is not None
        assert (grant.rate_limits.limit_requests, grant.rate_limits.remaining_requests) == (2, 1)
        await floor.run(client, "small")
        with pytest.raises(RefusedError) as caught:
            await floor.acquire(client, "small")
        limits = caught.value.refusal.rate_limits
        assert limits is not None and limits.remaining_requests == 0
        assert (await floor.run(client, "free")).rate_limits is None


async def test_a_ticket_that_has_to_make_room_is_refused(tmp_path: Path) -> None:
    """The queue is full: the less important class gives way, and its gateway is told."""
    scheduling = {"max_queued": 2}
    deployment = {"max_running": 1}
    async with Floor(tmp_path, 2, scheduling=scheduling, deployment=deployment).open() as floor:
        await floor.replica("r0")
        first, second = floor.clients
        running = await floor.acquire(first)
        flex = [asyncio.create_task(floor.acquire(first, tier="semi_online")) for _ in range(2)]
        await eventually(lambda: floor.queue.waiting(RequestClass.SEMI_ONLINE) == 2)
        online = asyncio.create_task(floor.acquire(second, "b"))
        done, _ = await asyncio.wait(flex, return_when=asyncio.FIRST_COMPLETED, timeout=5)
        (shed,) = done
        error = shed.exception()
        assert isinstance(error, RefusedError) and error.refusal.retry_after_s
        first.release(running.lease.lease_id, None)
        assert (await online).lease.ticket.tenant == "b"


async def test_one_bad_row_costs_nobody_else_anything() -> None:
    shelf = Shelf(bad={"weight": 0, "limits": {"max_queued": 1}}, worse={"limits": {"no_such": 1}}, good={"weight": 2})
    feed, queue = feed_of(shelf)
    await feed.refresh()
    assert queue._policies.keys() == {"good"} and feed.limited == frozenset()
    shelf.stored["bad"] = {"limits": {"max_queued": 1}}
    await feed.refresh()
    assert feed.limited == {"bad"}


@pytest.mark.parametrize("hangs", [True, False])
def test_a_store_that_is_away_at_first_delays_the_start_by_little(hangs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_apps.tenant_feed.FIRST_READ_S", 0.1)
    over = threading.Event()
    feed, _ = feed_of(shelf := Shelf(a={"limits": {"max_queued": 1}}))

    def away() -> dict[str, Any]:
        if hangs:
            over.wait(10)
        raise OSError("away")

    monkeypatch.setattr(shelf, "tenants", away)
    began_s = time.monotonic()
    feed.read_now()
    assert time.monotonic() - began_s < 5 and feed.limited is None, "not known: each request is decided centrally"
    over.set()
    monkeypatch.undo()
    feed.read_now()
    assert feed.limited == {"a"}


async def test_no_prepaid_lease_is_used_before_limits_are_known(tmp_path: Path) -> None:
    floor = Floor(tmp_path, 1, tenants={"small": {"limits": {"requests_per_minute": 500}}})
    floor.dispatcher._office.limited = floor.dispatcher._feed.limited = None
    floor.dispatcher._feed._known.clear()
    floor.dispatcher._store.tenants = away  # type: ignore[method-assign]
    async with floor.open():
        await floor.replica("r0")
        (client,) = floor.clients
        for _ in range(5):
            await floor.run(client, "small")
        await eventually(lambda: len(client._pool) > 0)
        calls = floor.calls()
        await floor.run(client, "small")
        assert floor.calls() > calls


def away() -> dict[str, Any]:
    raise OSError("away")

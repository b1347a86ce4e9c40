"""Loads for the dispatcher's benchmark. Owns: workers that ask for leases, what they measure. Must not know: Ray."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from dataclasses import dataclass, field

from benchmarks.report import percentile
from cluster.scheduling import ClassPolicy, Replica, RequestQueue, TenantPolicy, Ticket, TokenUsage
from cluster.vocabulary import RequestClass
from serve_apps.leases import LeaseClient, RefusedError

TENANTS = 16
USAGE = TokenUsage(100, 0, 50)
_numbers = itertools.count()


def decisions_per_s(seconds: float) -> float:
    """Submissions, grants and releases a second of the bare queue: 1,000 tenants, 10,000 requests waiting."""
    classes = {RequestClass.ONLINE: ClassPolicy(max_queued=10**6, max_wait_s=10**6)}
    queue = RequestQueue(classes)
    for number in range(1000):
        queue.set_tenant(f"tenant-{number}", TenantPolicy(weight=1 + number % 4), 0.0)
    for number in range(16):
        queue.put_replica(Replica(f"r{number}", "d", (RequestClass.ONLINE,), 64), 0.0)
    tickets = (
        Ticket(f"t{n}", "gw", f"tenant-{n * 7919 % 1000}", RequestClass.ONLINE, 100, 100, n * 1e-3)
        for n in itertools.count()
    )
    running: deque[str] = deque()
    decisions, now_s, busy_s = 0, 0.0, 0.0
    for ticket in itertools.islice(tickets, 10_000):
        queue.submit(ticket, now_s)
    while busy_s < seconds:
        batch = list(itertools.islice(tickets, 1000))
        # The processor's time, not the clock's: what else runs on the machine is not the policy's.
        started = time.process_time()
        for ticket in batch:
            now_s += 1e-3
            queue.submit(ticket, now_s)
            granted = queue.grant(now_s)
            running.extend(lease.lease_id for lease in granted)
            queue.release(running.popleft(), USAGE, now_s)
            decisions += 2 + len(granted)
        busy_s += time.process_time() - started
    return decisions / busy_s


@dataclass
class Crowd:
    """`workers` that ask, hold, give back and ask again."""

    clients: list[LeaseClient]
    workers: int
    hold_s: float
    tenant: str | None = None
    waits_s: list[float] = field(default_factory=list)

    async def run(self, seconds: float) -> dict[str, float]:
        ends_at_s = time.perf_counter() + seconds
        started = time.perf_counter()
        await asyncio.gather(*(self._work(number, ends_at_s) for number in range(self.workers)))
        elapsed_s = time.perf_counter() - started
        waits_ms = [wait * 1e3 for wait in self.waits_s]
        return {
            "leases_per_s": len(waits_ms) / elapsed_s,
            "wait_p50_ms": percentile(waits_ms, 50),
            "wait_p99_ms": percentile(waits_ms, 99),
        }

    async def _work(self, number: int, ends_at_s: float) -> None:
        client = self.clients[number % len(self.clients)]
        tenant = self.tenant or f"tenant-{number % TENANTS}"
        while (asked_s := time.perf_counter()) < ends_at_s:
            grant = await client.acquire(_ticket(client, tenant), _nothing, 30)
            self.waits_s.append(time.perf_counter() - asked_s)
            # Also with nothing to hold: others are to have their turn, as between two requests of a gateway.
            await asyncio.sleep(self.hold_s)
            client.release(grant.lease.lease_id, USAGE)


@dataclass
class Overload:
    """Requests that come at `factor` times the rate at which `slots` can finish them, whatever becomes of them."""

    clients: list[LeaseClient]
    slots: int
    factor: float
    hold_s: float = 1.0
    wait_bound_s: float = 2.0
    finished: int = 0
    refused: int = 0
    late: int = 0
    refusals_s: list[float] = field(default_factory=list)

    async def run(self, seconds: float) -> dict[str, float]:
        """Offers for `seconds` after a warm-up that fills the slots; counts what is finished in that time."""
        rate_per_s = self.factor * self.slots / self.hold_s
        warm_up_s = 2 * self.hold_s
        tasks: set[asyncio.Task[None]] = set()
        started = time.perf_counter()
        self._from_s, self._until_s = started + warm_up_s, started + warm_up_s + seconds
        offered = 0
        while (now_s := time.perf_counter()) < self._until_s:
            while offered < (now_s - started) * rate_per_s:
                offered += 1
                task = asyncio.create_task(self._request(offered))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.sleep(0.002)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.2)
        return {
            "offered_per_s": offered / (seconds + warm_up_s),
            "goodput_per_s": self.finished / seconds,
            "refused_per_s": self.refused / seconds,
            "late_per_s": self.late / seconds,
            "refusal_p50_ms": percentile([r * 1e3 for r in self.refusals_s], 50) if self.refusals_s else 0.0,
        }

    async def _request(self, number: int) -> None:
        client = self.clients[number % len(self.clients)]
        asked_s = time.perf_counter()
        try:
            grant = await client.acquire(_ticket(client, f"tenant-{number % TENANTS}"), _nothing, 30)
        except RefusedError:
            if self._counts():
                self.refused += 1
                self.refusals_s.append(time.perf_counter() - asked_s)
            return
        wait_s = time.perf_counter() - asked_s
        try:
            # From half to one and a half of it: slots are to come free one after the other.
            await asyncio.sleep(self.hold_s * (0.5 + number * 0.618 % 1))
        finally:
            client.release(grant.lease.lease_id, USAGE)
        if self._counts():
            if wait_s <= self.wait_bound_s:
                self.finished += 1
            else:
                self.late += 1

    def _counts(self) -> bool:
        return self._from_s <= time.perf_counter() < self._until_s


def _ticket(client: LeaseClient, tenant: str) -> Ticket:
    return Ticket(f"req-{next(_numbers):032x}", client.gateway_id, tenant, RequestClass.ONLINE, 100, 100, time.time())


def _nothing() -> None:
    pass

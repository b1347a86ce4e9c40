"""Two gateways, one dispatcher, and everything that may go wrong between them, in any order.

Rules: ask, leave, release, lose answers, kill, restart, drain a replica, let time pass. Held after every step: no slot
of a replica has two requests. Held at rest: both ends agree on every lease and prepaid lease, waiting requests of a
tenant are served in their order of arrival, every request has one outcome, and nothing is left over.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.scheduling import TokenUsage
from serve_apps.messages import Grant
from tests.unit.serve_apps.lease_floor import Floor
from tests.unit.serve_apps.virtual_time import VirtualLoop, inline

MAX_EXAMPLES = 60
SLOTS = 4
REPLICAS = ("r0", "r1")
TENANTS: dict[str, Any] = {"a": {}, "b": {"weight": 2}, "small": {"limits": {"max_concurrent": 2}}}
CLOCKED = ("dispatcher", "lease_office", "leases", "tenant_feed")
gateways = st.integers(0, 1)


class LeaseMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._loop = VirtualLoop()
        modules = (*(f"serve_apps.{name}" for name in CLOCKED), "tests.unit.serve_apps.lease_floor")
        self._patches = [mock.patch(f"{module}.time", self._loop.clock) for module in modules]
        self._patches.append(mock.patch("asyncio.to_thread", inline))
        for patch in self._patches:
            patch.start()
        self._folder = tempfile.TemporaryDirectory()
        self._asked: dict[str, tuple[int, asyncio.Task[Grant]]] = {}
        self._held: dict[str, tuple[int, Grant]] = {}
        self._granted: Counter[str] = Counter()
        self._lost: list[str] = []
        self._draining: set[str] = set()
        self._call(self._set_up())

    async def _set_up(self) -> None:
        folder = Path(self._folder.name)
        self.floor = Floor(folder, 2, deployment={"max_running": SLOTS}, tenants=TENANTS)
        self._context = self.floor.open()
        await self._context.__aenter__()
        for name in REPLICAS:
            await self.floor.replica(name)
        await until(lambda: all(c._memory and len(c._memory.gateways) == 2 for c in self.floor.clients))

    def _call(self, work: Any) -> Any:
        return self._loop.run_until_complete(work)

    # --- what happens ---------------------------------------------------------------------------------------------

    @rule(gateway=gateways, tenant=st.sampled_from(["a", "a", "b", "b", "small"]), session=st.sampled_from([None, "s"]))
    def ask(self, gateway: int, tenant: str, session: str | None) -> None:
        self._call(self._ask(gateway, tenant, session))

    @rule(gateway=gateways, count=st.integers(2, 8))
    def burst(self, gateway: int, count: int) -> None:
        for _ in range(count):
            self._call(self._ask(gateway, "a", None))

    @rule(gateway=gateways)
    def gets_prepaid(self, gateway: int) -> None:
        """A request or two and a tick, after which the gateway holds prepaid leases (if nobody waits)."""
        self._call(self._ask(gateway, "b", None))
        self._call(asyncio.sleep(0.25))

    @rule(number=st.integers(0, 99), used=st.booleans())
    def release(self, number: int, used: bool) -> None:
        if self._held:
            lease_id = list(self._held)[number % len(self._held)]
            self._call(self._release(lease_id, TokenUsage(10, 0, 5) if used else None))

    @rule(number=st.integers(0, 99))
    def leave(self, number: int) -> None:
        if self._asked:
            self._call(self._leave(list(self._asked)[number % len(self._asked)]))

    @rule(method=st.sampled_from(["exchange", "next_answers", "hello"]), times=st.integers(1, 2))
    def lose_answers(self, method: str, times: int) -> None:
        self.floor.handle.lose_answers(method, times)

    @precondition(lambda self: self.floor.handle.actor is not None)
    @rule()
    def kill(self) -> None:
        self.floor.handle.kill()

    @precondition(lambda self: self.floor.handle.actor is None)
    @rule()
    def restart(self) -> None:
        self._call(self.floor.restart())

    @rule(name=st.sampled_from(REPLICAS), draining=st.booleans())
    def drain(self, name: str, draining: bool) -> None:
        self._call(self.floor.replica(name, state="draining" if draining else "ready"))

    @rule(seconds=st.sampled_from([0.0, 0.002, 0.01, 0.1, 0.5, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self._call(asyncio.sleep(seconds))

    @rule()
    def comes_to_rest(self) -> None:
        self._call(self._rest())

    # --- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def no_slot_has_two_requests(self) -> None:
        self._collect()
        running = Counter(h.lease.replica_id for client in self.floor.clients for h in client._held.values())
        assert all(count <= SLOTS for count in running.values()), running
        assert not self._lost  # no replica has died
        assert all(count == 1 for count in self._granted.values())

    def teardown(self) -> None:
        try:
            self._call(self._end())
        finally:
            self._call(self._context.__aexit__(None, None, None))
            self._loop.close()
            self._folder.cleanup()
            for patch in self._patches:
                patch.stop()

    # --- inside ---------------------------------------------------------------------------------------------------

    async def _ask(self, gateway: int, tenant: str, session: str | None) -> None:
        client = self.floor.clients[gateway]
        ticket = self.floor.ticket(client, tenant, session=session)

        async def acquire() -> Grant:
            grant = await client.acquire(ticket, lambda: self._lost.append(ticket.ticket_id), 60)
            self._granted[ticket.ticket_id] += 1
            return grant

        self._asked[ticket.ticket_id] = (gateway, asyncio.create_task(acquire()))
        await asyncio.sleep(0)

    async def _release(self, lease_id: str, usage: TokenUsage | None) -> None:
        gateway, grant = self._held.pop(lease_id)
        self.floor.clients[gateway].release(grant.lease.lease_id, usage)

    async def _leave(self, ticket_id: str) -> None:
        _, task = self._asked[ticket_id]
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():  # else it was granted before it could leave
            del self._asked[ticket_id]

    def _collect(self) -> None:
        for ticket_id, (gateway, task) in list(self._asked.items()):
            if task.done():
                grant = task.result()
                assert grant.lease.ticket.ticket_id == ticket_id and grant.lease.lease_id not in self._held
                self._held[grant.lease.lease_id] = (gateway, grant)
                del self._asked[ticket_id]

    async def _rest(self) -> None:
        """Everybody can talk again: both ends come to agree, and nobody waits while a slot is free."""
        if self.floor.handle.actor is None:
            await self.floor.restart()
        self.floor.handle._to_lose.clear()
        for name in REPLICAS:
            await self.floor.replica(name)

        def settled() -> bool:
            self._collect()
            free = sum(r.free for r in self.floor.queue.replicas())
            ready = bool(self.floor.queue.contended()) and free > 0
            known = len(self.floor.dispatcher._office.gateways) == 2 and len(self.floor.queue.replicas()) == 2
            return known and self.floor.in_step() and not ready

        await until(settled)

    async def _end(self) -> None:
        """Serve everybody: in order of arrival per tenant, and nothing is left."""
        await self._rest()
        waiting = {t.ticket_id: t for t in self.floor.queue.tickets()}
        served: dict[str, list[float]] = {}
        async with asyncio.timeout(20):
            while self._asked or self._held:
                now = sorted(self._held)
                for lease_id in now[:1]:  # one at a time: what is granted next is one ticket
                    await self._release(lease_id, TokenUsage(10, 0, 5))
                before = set(self._asked)
                await until(lambda: self.floor.in_step() and not self._contended_and_free())
                self._collect()
                for ticket_id in sorted(before - set(self._asked), key=lambda i: waiting[i].arrived_at_s):
                    served.setdefault(waiting[ticket_id].tenant, []).append(waiting[ticket_id].arrived_at_s)
        for arrivals in served.values():
            assert arrivals == sorted(arrivals)
        await until(lambda: self.floor.in_step() and not self.floor.queue.leases())
        assert not self._lost and all(count == 1 for count in self._granted.values())

    def _contended_and_free(self) -> bool:
        return bool(self.floor.queue.contended()) and any(r.free for r in self.floor.queue.replicas())


async def until(condition: Callable[[], bool], patience_s: float = 30.0) -> None:
    """Virtual seconds: more than any timeout of the protocol."""
    async with asyncio.timeout(patience_s):
        while not condition():  # noqa: ASYNC110 -- the condition is a fact about two parties, not an event
            await asyncio.sleep(0.005)


LeaseMachine.TestCase.settings = settings(
    max_examples=MAX_EXAMPLES, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLeases = LeaseMachine.TestCase

"""The gateway's end of the dispatcher: ask for a lease, report progress, give it back.

Concurrency: one event loop. All news is gathered while a call is on its way and goes out with the next one, so the
number of actor calls is bounded by the round trip, not by the request rate. A long poll brings what is decided later.
While nobody waits the dispatcher sends prepaid leases (`PrepaidPool`), and a request that may use one starts at once.
When the dispatcher dies, Ray restarts it under the same handle; `hello` then brings back every waiting ticket (with its
arrival time), every running lease and the tenants' counters, so nobody loses a place and streams do not notice.

Owns: waiting tickets and held leases of this gateway process. Must not know: HTTP, engines.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ray.exceptions import RayError, RayTaskError

from cluster.scheduling import Lease, Refusal, Ticket, TokenUsage
from cluster.vocabulary import RequestClass
from serve_apps.messages import Answers, Exchange, Grant, Hello, Memory
from serve_apps.prepaid_pool import PrepaidPool

POLL_S = 5.0
LINGER_S = 0.02
"""How long news may wait for more of its kind when nobody waits for it: fewer actor calls for the same requests. A call
costs dispatcher and gateway more than all else that they do for a request; a slot that is given back so much later is
missed by nobody, because then no news would linger."""
PROGRESS_S = 0.25
RETRY_S = 0.2
STATUS_TIMEOUT_S = 5.0
log = logging.getLogger(__name__)


class RefusedError(Exception):
    """The dispatcher will not run this request; the refusal says why and when to come back."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Progress(Protocol):
    """A running request as the lease client sees it."""

    output_tokens: int


@dataclass(slots=True)
class _Waiting:
    ticket: Ticket
    on_lost: Callable[[], None]
    future: asyncio.Future[Grant]


@dataclass(slots=True)
class _Held:
    lease: Lease
    on_lost: Callable[[], None]
    progress: Progress | None = None
    reported: int = 0


class LeaseClient:
    """Talks to one model's dispatcher on behalf of one gateway process."""

    def __init__(self, dispatcher: Any, gateway_id: str, reconnect: Callable[[], Any] | None = None) -> None:
        """`reconnect` finds (or makes) the dispatcher anew, in a thread, when the handle seems dead for good."""
        self._dispatcher = dispatcher
        self._reconnect = reconnect
        self._gateway_id = gateway_id
        self._waiting: dict[str, _Waiting] = {}
        self._held: dict[str, _Held] = {}
        self._pool = PrepaidPool()
        self._memory: Memory | None = None
        self._out = Exchange(gateway_id)
        self._news = asyncio.Event()
        self._linger: asyncio.TimerHandle | None = None
        self._in_touch = asyncio.Event()
        self._hellos = 0
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def gateway_id(self) -> str:
        return self._gateway_id

    def start(self) -> None:
        loops = (self._send_forever(), self._listen_forever(), self._report_progress_forever())
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    async def close(self) -> None:
        """Leave in order: what still waits or runs is given up."""
        for task in self._tasks:
            task.cancel()
        if self._linger is not None:
            self._linger.cancel()
        with contextlib.suppress(RayError, TimeoutError):
            async with asyncio.timeout(2):
                await self._dispatcher.goodbye.remote(self._gateway_id)

    async def acquire(self, ticket: Ticket, on_lost: Callable[[], None], timeout_s: float) -> Grant:
        """A lease, at once if a prepaid one will do. Raises RefusedError; when cancelled, the ticket is withdrawn.

        `on_lost` is called, perhaps repeatedly, if the replica goes away before `release`. `timeout_s` bounds the wait
        even if the dispatcher stays unreachable (it normally ends waiting tickets itself).
        """
        prepaid = self._pool.take(ticket)
        if prepaid is not None:
            grant = prepaid.used_for(ticket, time.time())
            self._held[grant.lease.lease_id] = _Held(grant.lease, on_lost)
            self._out.used.append((grant.lease.lease_id, ticket, grant.lease.granted_at_s))
            self._tell(later=bool(self._pool))
            return grant
        future: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        self._waiting[ticket.ticket_id] = _Waiting(ticket, on_lost, future)
        self._out.submits.append(ticket)
        self._tell()
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            self._withdraw(ticket.ticket_id, future)
            message = "the dispatcher did not answer in time"
            raise RefusedError(Refusal(ticket.ticket_id, 503, "dispatcher_unavailable", message, 1.0)) from None
        except asyncio.CancelledError:
            self._withdraw(ticket.ticket_id, future)
            raise

    def watch(self, lease_id: str, progress: Progress) -> None:
        """Report the progress of a running request a few times a second, together with all others."""
        if lease_id in self._held:
            self._held[lease_id].progress = progress

    def oldest_arrivals(self) -> dict[tuple[RequestClass, str], float]:
        """By class and tenant, when the oldest request came that waits for a lease."""
        oldest: dict[tuple[RequestClass, str], float] = {}
        for waiting in self._waiting.values():  # about in the order in which they came
            ticket = waiting.ticket
            oldest.setdefault((ticket.request_class, ticket.tenant), ticket.arrived_at_s)
        return oldest

    def release(self, lease_id: str, usage: TokenUsage | None) -> None:
        """Give a lease back with what was used; None when nothing ran."""
        if self._held.pop(lease_id, None) is not None:
            self._out.releases.append((lease_id, usage))
            # Somebody may wait for the slot, unless there are prepaid leases: then nobody does.
            self._tell(later=bool(self._pool))

    def unreachable(self, replica_id: str) -> None:
        """The replica took no connection: nobody should be sent there until it says that it lives."""
        self._out.unreachable.append(replica_id)
        self._out.returned += self._pool.drop_replica(replica_id)
        self._tell()

    async def status(self) -> dict[str, Any]:
        """The dispatcher's own account of its queue and replicas; raises RefusedError while it is away."""
        try:
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                return dict(await self._dispatcher.status.remote())
        except (RayError, TimeoutError) as error:
            message = f"the dispatcher does not answer ({type(error).__name__}); Ray is restarting it"
            raise RefusedError(Refusal("", 503, "dispatcher_unavailable", message, 1.0)) from error

    def _withdraw(self, ticket_id: str, future: asyncio.Future[Grant]) -> None:
        self._waiting.pop(ticket_id, None)
        if future.done() and not future.cancelled() and future.exception() is None:
            # Granted in the moment the client left: give it back unused.
            self.release(future.result().lease.lease_id, None)
        else:
            self._out.cancels.append(ticket_id)
            self._tell()

    def _tell(self, later: bool = False) -> None:
        """Have the news sent: now, or in a moment together with more."""
        if not later:
            self._news.set()
        elif self._linger is None:
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self._news.set)

    def _apply(self, answers: Answers) -> None:
        for grant in answers.grants:
            waiting = self._waiting.pop(grant.lease.ticket.ticket_id, None)
            if waiting is None or waiting.future.done():
                self._out.releases.append((grant.lease.lease_id, None))
                self._tell()
            else:
                self._pool.remember(waiting.ticket, grant.lease.replica_id)
                # Held from here on, not from when the request's task runs: a hello or a loss may come before.
                self._held[grant.lease.lease_id] = _Held(grant.lease, waiting.on_lost)
                waiting.future.set_result(grant)
        for refusal in answers.refusals:
            waiting = self._waiting.pop(refusal.ticket_id, None)
            if waiting is not None and not waiting.future.done():
                waiting.future.set_exception(RefusedError(refusal))
        for lease_id in answers.lost:
            held = self._held.get(lease_id)
            if held is not None:
                held.on_lost()
        self._apply_prepaid(answers)
        if answers.memory is not None:
            self._memory = answers.memory
        if answers.resync:
            self._in_touch.clear()

    def _apply_prepaid(self, answers: Answers) -> None:
        if answers.limited is not None:
            self._pool.set_limited(answers.limited)
        self._pool.add(answers.prepaid)
        if answers.recall:
            self._out.returned += self._pool.recall(answers.recall)
            self._tell()

    async def _send_forever(self) -> None:
        while True:
            if not self._in_touch.is_set():
                await self._hello()
            await self._news.wait()
            self._news.clear()
            if self._linger is not None:
                self._linger.cancel()
                self._linger = None
            message, self._out = self._out, Exchange(self._gateway_id)
            if not message:
                continue
            try:
                answers = await self._dispatcher.exchange.remote(message)
            except RayError as error:
                self._lost_touch(error)
            else:
                if answers.resync:
                    # Nothing of it was looked at: its tickets are asked for again, under limits, after the hello.
                    self._out.submits[:0] = message.submits
                self._apply(answers)

    async def _listen_forever(self) -> None:
        while True:
            await self._in_touch.wait()
            hellos = self._hellos
            try:
                answers = await self._dispatcher.next_answers.remote(self._gateway_id, POLL_S)
            except RayError as error:
                if hellos == self._hellos:
                    self._lost_touch(error)
            else:
                # What was on its way during a hello is void: the hello's list was made without it.
                if hellos == self._hellos:
                    self._apply(answers)
            if not self._in_touch.is_set():
                self._news.set()  # wakes the sender, which says hello
                await asyncio.sleep(RETRY_S)

    async def _report_progress_forever(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            for lease_id, held in self._held.items():
                if held.progress is not None and held.progress.output_tokens > held.reported:
                    held.reported = self._out.progress[lease_id] = held.progress.output_tokens
            if self._out.progress:
                self._tell()

    async def _hello(self) -> None:
        """Say hello until somebody answers: Ray restarts the dispatcher, and requests that wait have their own
        bound.
        """
        while not self._in_touch.is_set():
            # Releases and cancellations not yet sent are implied: hello lists exactly what still waits and runs.
            # A prepaid lease that is in use is among the latter, and while nobody answers more of them may be used.
            # Tickets that were never sent are not brought back but asked for afterwards: limits hold for them.
            fresh = [ticket for ticket in self._out.submits if ticket.ticket_id in self._waiting]
            self._out = Exchange(self._gateway_id, submits=fresh)
            self._hellos += 1
            never_sent = {ticket.ticket_id for ticket in fresh}
            waiting = [w.ticket for ticket_id, w in self._waiting.items() if ticket_id not in never_sent]
            running = [held.lease for held in self._held.values()]
            produced = {lease_id: held.reported for lease_id, held in self._held.items() if held.reported}
            prepaid = self._pool.held_by(self._gateway_id)
            try:
                hello = Hello(self._gateway_id, waiting, running, prepaid, self._memory, produced)
                answers = await self._dispatcher.hello.remote(hello)
            except RayError as error:
                self._lost_touch(error)
                await asyncio.sleep(RETRY_S)
                if self._reconnect is not None:
                    with contextlib.suppress(RayError, ValueError):
                        self._dispatcher = await asyncio.to_thread(self._reconnect)
            else:
                self._in_touch.set()
                self._apply(answers)
                if self._out:
                    self._tell()

    def _lost_touch(self, error: RayError) -> None:
        if self._in_touch.is_set():
            # An error of the dispatcher's own comes with its trace; everything else is said by its name.
            what = error if isinstance(error, RayTaskError) else type(error).__name__
            log.warning("lost the dispatcher (%s); trying again", what)
        self._in_touch.clear()

"""One attempt at a request: a lease, the call to its engine, the release.

Owns: one lease from its ticket to its end, and the outcome told to the breakers. Must not know: whether there are other
attempts (attempts.py, course.py), who gets the answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.engines import engine_path, takes_cache_salt
from cluster.scheduling import Ticket, TokenUsage
from serve_apps.gateway.courses.continuation import Continuation, NotContinuableError
from serve_apps.gateway.courses.endings import end
from serve_apps.gateway.courses.engine_call import (
    EngineCalls,
    EventsAnswer,
    ReplicaFailedError,
    ReplicaLost,
    StallWatch,
    broken,
)
from serve_apps.gateway.courses.hedging import Claim, beginning_with
from serve_apps.gateway.courses.joined import JoinedStream
from serve_apps.gateway.courses.replica_health import ReplicaHealth
from serve_apps.gateway.courses.tickets import most, used_now, with_first_token
from serve_apps.gateway.engine_client import EngineConnectError, EngineConnectionError, Exchange
from serve_apps.gateway.errors import ApiError
from serve_apps.gateway.salt import with_salt
from serve_apps.messages import Grant

if TYPE_CHECKING:
    from serve_apps.gateway.courses.course import Course, Deliver

ACQUIRE_SLACK_S = 10.0


@dataclass(frozen=True, slots=True)
class Tools:
    """What all attempts of a gateway process share."""

    calls: EngineCalls
    stall_timeout_s: float
    engine_kinds: Mapping[str, str]
    """By deployment."""


class Attempt:
    """`acquire`, then `run`."""

    __slots__ = ("_claim", "_course", "_deliver", "_first", "_grant", "_health", "_lost", "_tools")

    def __init__(
        self, tools: Tools, course: Course, health: ReplicaHealth, deliver: Deliver, *, first: bool = True
    ) -> None:
        """`first`: not one that starts beside another; its lease began when the wait in the queue ended."""
        self._first = first
        self._tools = tools
        self._course = course
        self._health = health
        self._deliver = deliver
        self._lost = ReplicaLost()
        self._grant: Grant | None = None
        self._claim: Claim | None = None

    async def acquire(self, ticket: Ticket) -> Grant:
        """Raises RefusedError."""
        patience_s = max(0.0, (ticket.expires_at_s or 0.0) - time.time()) + ACQUIRE_SLACK_S
        self._grant = await self._course.leases.acquire(ticket, self._lost.signal, patience_s)
        return self._grant

    def give_up(self) -> None:
        """The lease is not needed."""
        self._course.leases.release(self._held.lease.lease_id, None)

    async def run(self, claim: Claim | None = None) -> None:
        """Use the lease, and release it whatever happens. `claim`: others run beside it (hedging.py).

        Raises ReplicaFailedError, DivergedError, or ApiError when no other attempt could help.
        """
        course, self._claim = self._course, claim
        before = course.usage if course.begun else None
        if claim is None:
            course.usage = None
        stall = self._stall_watch()
        try:
            await self._watched(stall)
        except asyncio.CancelledError:
            if self._is_the_courses:
                # The client left while the engine worked: its prompt is not free for that.
                course.usage = course.usage or before or TokenUsage(course.request.prompt_tokens)
            raise
        finally:
            if stall is not None:
                stall.stop()
            mine = self._is_the_courses
            used = used_now(before, course.usage) if mine else None
            if before is None and self._first:
                used = with_first_token(used, course)
            course.leases.release(self._held.lease.lease_id, used)
            if mine:
                course.usage = most(course.usage, before)

    @property
    def _held(self) -> Grant:
        assert self._grant is not None
        return self._grant

    @property
    def _is_the_courses(self) -> bool:
        """Not one that has lost a race."""
        return self._course.grant is self._grant

    def _stall_watch(self) -> StallWatch | None:
        course = self._course
        course.sending, course.stall = False, None
        if course.sent is None:
            return None

        def excused() -> bool:
            return course.sending or not course.could_go_on()

        return StallWatch(self._tools.stall_timeout_s, self._lost.signal, excused)

    async def _watched(self, stall: StallWatch | None) -> None:
        """The call, ended when the replica is lost or stalls; its outcome is told to the breakers."""
        course, replica_id, began_at_s = self._course, self._held.lease.replica_id, time.monotonic()
        try:
            async with asyncio.timeout(None) as scope:
                self._lost.attach(scope)
                await self._call(stall)
        except ApiError as error:
            if error.status < 500:  # about the request: the engine does its work
                self._health.breakers.succeeded(replica_id, began_at_s)
            raise
        except (EngineConnectionError, ReplicaFailedError, TimeoutError) as error:
            course.failed_replicas += (replica_id,)
            self._health.breakers.failed(replica_id, began_at_s, time.monotonic())
            if isinstance(error, EngineConnectError):
                course.leases.unreachable(replica_id)
            if isinstance(error, ReplicaFailedError):
                raise
            raise ReplicaFailedError(type(error).__name__) from error
        self._health.breakers.succeeded(replica_id, began_at_s)

    async def _call(self, stall: StallWatch | None) -> None:
        course, continuation = self._course, self._course.continuation
        body = course.request.body if continuation is None else await self._resume(continuation)
        if body is None:
            return
        async with self._tools.calls.post(self._held, self._path(course.request.path), self._salted(body)) as answer:
            if self._claim is None and not course.begun:
                course.status = answer.status
            try:
                await self._tools.calls.check(answer, course.request.path)
            except ApiError as error:
                if continuation is None:
                    raise
                await self._refused(continuation, error)
                return
            if self._claim is None:
                course.stall = stall
                await self._deliver(course, answer)
            else:
                await self._race(answer, self._claim, stall)

    async def _race(self, answer: Exchange, claim: Claim, stall: StallWatch | None) -> None:
        """Delivers if this attempt is the first to have an event."""
        course, chunks = self._course, answer.content.iter_any()
        first = await anext(chunks, b"") if answer.content_type == EventsAnswer.content_type else None
        if first == b"":
            raise ReplicaFailedError("the engine ended the stream before its first event")
        if not claim():
            return
        course.grant, course.status, course.stall = self._held, answer.status, stall
        if first is None:
            await self._deliver(course, answer)
        else:
            events = EventsAnswer(beginning_with(first, chunks), answer.headers["content-type"])
            await self._deliver(course, events)

    # --- what this engine gets ------------------------------------------------------------------------------------

    def _path(self, path: str) -> str:
        """Where this engine has what clients find at `path`."""
        kind = self._tools.engine_kinds.get(self._held.deployment)
        return (engine_path(kind, path) if kind is not None else None) or path

    def _salted(self, body: bytes) -> bytes:
        """A deployment that this gateway does not know yet gets the salt: harmless if unread."""
        request, kind = self._course.request, self._tools.engine_kinds.get(self._held.deployment)
        if request.salt is None or (kind is not None and not takes_cache_salt(kind, request.path)):
            return body
        return with_salt(body, request.salt)

    # --- a stream that goes on ------------------------------------------------------------------------------------

    async def _resume(self, continuation: Continuation) -> bytes | None:
        """The body that makes this engine go on; None if nothing was left to produce, and the asker has been told."""
        course = self._course
        assert course.sent is not None
        model, path = course.request.model, self._path("/tokenize")
        tokens = await self._tools.calls.tokens(self._held, path, model, continuation)
        try:
            body = continuation.body(tokens)
        except NotContinuableError as reason:
            raise broken(f", and the stream cannot go on elsewhere: {reason}") from None
        course.resumed_tokens = continuation.sent_tokens(tokens)
        if body is None:
            await self._full(continuation)
            return None
        story, wants_usage = course.sent.story(), course.request.wants_usage
        course.stream = JoinedStream(continuation, tokens, story, wants_usage=wants_usage)
        return body

    async def _refused(self, continuation: Continuation, error: ApiError) -> None:
        if error.code != "context_length_exceeded":
            raise broken(f", and the next one refused to go on ({error.message})") from None
        await self._full(continuation)

    async def _full(self, continuation: Continuation) -> None:
        """The text so far fills the request's limit or the context, so it is all of it."""
        request = self._course.request
        path = self._path("/tokenize")
        prompt = await self._tools.calls.prompt_tokens(self._held, path, request.model, continuation)
        usage = TokenUsage(prompt or request.prompt_tokens, 0, self._course.resumed_tokens)
        await end(self._course, "length", usage, self._deliver)

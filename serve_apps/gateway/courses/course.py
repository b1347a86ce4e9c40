"""The course of one generation request: what has happened to it, and what happens next.

lease -> the engine's server -> an answer for whoever asked -> release. Before the asker has got anything, a replica
that fails is replaced by another (up to `max_attempts`). A stream that has begun goes on on another replica where that
is possible (continuation.py), else the failure is the asker's. Whatever happens, every lease is released once, and the
course knows what to bill.

Owns: the decision to try again. Must not know: leases and connections (attempts.py), who asked (an HTTP client, a
worker), what becomes of the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from cluster.config import TribesConfig
from cluster.scheduling import TokenUsage
from cluster.state import UsageRecord
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.courses.attempts import Attempts
from serve_apps.gateway.courses.continuation import (
    PATHS,
    Continuation,
    NotContinuableError,
    continuation,
    lacks_only_the_end,
)
from serve_apps.gateway.courses.endings import end
from serve_apps.gateway.courses.engine_call import BROKEN, RETRY_AFTER_S, Answer, ReplicaFailedError, StallWatch, broken
from serve_apps.gateway.courses.joined import DivergedError
from serve_apps.gateway.courses.replica_health import Happened, ReplicaHealth, untold
from serve_apps.gateway.courses.sent import SentStream
from serve_apps.gateway.engine_client import EngineClient
from serve_apps.gateway.errors import ApiError
from serve_apps.gateway.recent_refusals import Kind, RecentRefusals
from serve_apps.gateway.request import GenerationRequest
from serve_apps.gateway.streams import AnswerStream
from serve_apps.leases import LeaseClient, Progress
from serve_apps.messages import Grant

CLIENT_GONE_STATUS = 499
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Course:
    """What has happened to a request so far."""

    request_id: str
    caller: Caller
    request: GenerationRequest
    leases: LeaseClient
    max_wait_s: float
    arrived_at_s: float = field(default_factory=time.time)
    started_s: float = field(default_factory=time.monotonic)
    grant: Grant | None = None
    queue_wait_s: float = 0.0
    ttft_s: float | None = None
    status: int = 0
    begun: bool = False
    """The asker has part of the answer."""
    complete: bool = False
    """The asker has all of it: that it leaves then is no news."""
    usage: TokenUsage | None = None
    """What to bill, of all attempts together."""
    counted: bool = False
    """`usage` is what an engine counted."""
    failed_replicas: tuple[str, ...] = ()
    sent: SentStream | None = None
    """Where whoever delivers keeps what the asker has got; None: a broken stream will not go on."""
    sending: bool = False
    """The asker is being waited for, not the engine."""
    pieces: int = 0
    """Sent so far."""
    stall: StallWatch | None = None
    continuation: Continuation | None = None
    """How the next attempt goes on with what was sent."""
    stream: AnswerStream | None = None
    """Reads the events of an engine that goes on."""
    resumed_tokens: int = 0
    """Output tokens of earlier attempts."""
    refused: ApiError | None = None
    """What our queue said without being asked, where an upstream may serve the request all the same."""
    upstream_usd: float = 0.0
    """Paid to the upstream that served it; `grant` then only stands for one."""

    @property
    def kind(self) -> Kind:
        return self.request.model, self.caller.tenant, self.request.request_class

    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_s

    def taken(self) -> int | None:
        """Pieces that the asker has taken, while it is waited for to take another."""
        return self.pieces if self.sending else None

    def watch(self, progress: Progress) -> None:
        """Have the running request charged as it produces tokens, and noticed when it produces none."""
        assert self.grant is not None
        self.leases.watch(self.grant.lease.lease_id, progress)
        if self.stall is not None:
            self.stall.start(progress)

    def could_go_on(self) -> bool:
        """Whether another replica could go on with what was sent."""
        try:
            self.go_on()
        except NotContinuableError:
            return False
        return True

    def go_on(self, *, exact: bool = False) -> Continuation:
        """How. Raises NotContinuableError."""
        if self.sent is None:
            raise NotContinuableError("this kind of stream is not kept")
        return continuation(self.request.path, self.request.body, self.sent.story(), exact=exact)

    @contextlib.contextmanager
    def noting_its_end(self) -> Iterator[None]:
        """Sets `status` by what the block raises."""
        try:
            yield
        except ApiError as error:
            self.status = error.status
            raise
        except asyncio.CancelledError:
            # The client left, or the server ends the request: it shuts down, or tells in this way that the client left.
            if not self.complete:
                self.status = CLIENT_GONE_STATUS
            raise
        except Exception:
            self.status = 500
            raise

    def record(self) -> UsageRecord:
        usage = self.usage or TokenUsage()
        return UsageRecord(
            request_id=self.request_id,
            tenant=self.caller.tenant,
            key_id=self.caller.key_id,
            model=self.request.model,
            deployment=self.grant.deployment if self.grant else "",
            request_class=self.request.request_class.value,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.output_tokens,
            queue_wait_s=self.queue_wait_s,
            ttft_s=self.ttft_s,
            duration_s=self.elapsed_s(),
            status=self.status,
            finished_at_s=time.time(),
            upstream_usd=self.upstream_usd,
        )


Deliver = Callable[[Course, Answer], Awaitable[None]]
"""Takes an engine's answer that is not an error to whoever asked. It sets `begun`, `ttft_s` and `usage`, keeps in
`sent` what it has sent, and reads the events with `stream` where that is set. It is called again for a stream that goes
on."""


class CourseRunner(Protocol):
    """Takes requests to their end: `Courses`, or what goes on where that gives up (upstreams/courses.py)."""

    def check(self, course: Course) -> None: ...

    async def run(self, course: Course, deliver: Deliver) -> None: ...


class Courses:
    """Runs requests against engine replicas over persistent connections."""

    def __init__(self, client: EngineClient, config: TribesConfig, happened: Happened = untold) -> None:
        """`happened` hears what is done about replicas that fail."""
        self._recent = RecentRefusals()
        self._attempts = Attempts(client, config, self._recent)
        self._max_attempts = config.gateway.max_attempts
        self._max_continuations = config.gateway.max_continuations
        self._config = config
        self._happened = happened
        self._health: dict[str, ReplicaHealth] = {}

    def check(self, course: Course) -> None:
        """Raise ApiError if it is known without asking that the request would be refused."""
        refusal = self._recent.find(course.kind)
        if refusal is not None:
            course.status = refusal.status
            raise ApiError.of_refusal(refusal)

    async def run(self, course: Course, deliver: Deliver) -> None:
        """Take the request to its end. Raises ApiError when there is no (whole) answer; `course.status` says how
        it ended in any case.
        """
        health = self._health_of(course.request.model)
        if self._max_continuations and course.request.stream and course.request.path in PATHS:
            course.sent = SentStream()
        health.started()
        try:
            with course.noting_its_end():
                await self._until_done(course, health, deliver)
        finally:
            # An answer from elsewhere, if there is one, is no part of this.
            course.sent = course.stream = course.stall = None
            health.ended()

    async def _until_done(self, course: Course, health: ReplicaHealth, deliver: Deliver) -> None:
        attempts, continuations = self._max_attempts, self._max_continuations
        for number in itertools.count(1):
            exact = False
            try:
                await self._attempts.run(course, number, health, deliver)
                return
            except DivergedError as error:
                if course.continuation is None or not course.continuation.repeats:
                    raise broken(f", and the next one did not go on from what was sent ({error})") from error
                exact, why = True, type(error).__name__
            except ReplicaFailedError as error:
                # Not its text: that is the engine's own.
                why = type(error.__cause__ or error).__name__
            if not course.begun:
                attempts -= 1
                _may_restart(attempts, why, health)
                continue
            if course.sent is not None and lacks_only_the_end(course.request.body, course.sent.story()):
                seen = TokenUsage(course.request.prompt_tokens, 0, course.sent.story().events)
                await end(course, None, seen, deliver)
                return
            continuations -= 1
            course.continuation = self._going_on(course, continuations, exact, why, health)
            where = course.grant.lease.replica_id if course.grant is not None else ""
            log.warning("%s: %s failed (%s), the stream goes on elsewhere", course.request_id, where, why)

    def _health_of(self, model: str) -> ReplicaHealth:
        if (health := self._health.get(model)) is None:
            health = self._health[model] = ReplicaHealth(self._config, model, self._happened)
        return health

    def _going_on(self, course: Course, left: int, exact: bool, why: str, health: ReplicaHealth) -> Continuation:
        """How the stream goes on. Raises ApiError if it ends here."""
        if course.sent is None:
            raise broken(f" ({why}), and streams of this kind do not go on elsewhere")
        if left < 0:
            raise broken(f" ({why}), as did {self._max_continuations} others before it")
        try:
            plan = course.go_on(exact=exact)
        except NotContinuableError as reason:
            raise broken(f", and the stream cannot go on elsewhere: {reason}") from None
        # Last: a stream that ends here takes nothing from those that can go on.
        if not health.may_retry(begun=True):
            raise broken(f" ({why}), and too many streams are going on elsewhere already")
        return plan


def _may_restart(left: int, why: str, health: ReplicaHealth) -> None:
    """Raises ApiError when nothing more may be tried."""
    if left <= 0:
        raise ApiError(502, "replica_failed", f"{BROKEN} ({why}); send it again", retry_after_s=RETRY_AFTER_S)
    if not health.may_retry(begun=False):
        message = f"{BROKEN} ({why}), and too many requests are being run again already; send it again later"
        raise ApiError(502, "replica_failed", message, retry_after_s=health.patience_s())

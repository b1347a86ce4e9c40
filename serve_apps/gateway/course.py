"""The course of one generation request: lease -> the engine's server -> an answer for whoever asked -> release.

Before the asker has got anything, a replica that fails is replaced by another (up to `max_attempts`); after that the
failure is the asker's. Whatever happens, every lease is released once, and the course knows what to bill.

Owns: attempts, leases and the request to the engine. Must not know: who asked (an HTTP client, a worker), what becomes
of the answer, who grants leases.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp

from cluster.config import TribesConfig
from cluster.engines import takes_cache_salt
from cluster.scheduling import Ticket, TokenUsage
from cluster.state import UsageRecord
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.errors import ApiError, engine_error
from serve_apps.gateway.recent_refusals import Kind, RecentRefusals
from serve_apps.gateway.request import GenerationRequest
from serve_apps.gateway.salt import with_salt
from serve_apps.leases import LeaseClient, Progress, RefusedError
from serve_apps.messages import Grant

CLIENT_GONE_STATUS = 499
ACQUIRE_SLACK_S = 10.0
ON_ARRIVAL_S = 0.5
"""A refusal that takes longer is about a request that waited, and says nothing about new ones."""


class ReplicaFailedError(Exception):
    """The replica could not serve this request; another may."""


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
    """The asker has part of the answer: no other replica may be tried."""
    usage: TokenUsage | None = None
    failed_replicas: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        return self.request.model, self.caller.tenant, self.request.request_class

    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_s

    def watch(self, progress: Progress) -> None:
        """Have the running request charged as it produces tokens."""
        assert self.grant is not None
        self.leases.watch(self.grant.lease.lease_id, progress)

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
        )


Deliver = Callable[[Course, aiohttp.ClientResponse], Awaitable[None]]
"""Takes an engine's answer that is not an error to whoever asked. It sets `begun`, `ttft_s` and `usage`."""


class _ReplicaLost:
    """Ends the attempt that is attached to it when the dispatcher says that its replica is gone."""

    def __init__(self) -> None:
        self._happened = False
        self._scope: asyncio.Timeout | None = None

    def attach(self, scope: asyncio.Timeout) -> None:
        self._scope = scope
        if self._happened:
            self.signal()

    def signal(self) -> None:
        """May come more than once, and when the attempt is already ending."""
        self._happened = True
        if self._scope is not None:
            with contextlib.suppress(RuntimeError):  # it is ending
                self._scope.reschedule(asyncio.get_running_loop().time())


class Courses:
    """Runs requests against engine replicas over persistent connections."""

    def __init__(self, session: aiohttp.ClientSession, config: TribesConfig) -> None:
        self._session = session
        self._recent = RecentRefusals()
        self._max_attempts = config.gateway.max_attempts
        self._engine_kinds = {name: item.engine.kind for name, item in config.deployments.items()}
        self._timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=config.gateway.upstream_connect_timeout_s,
            sock_read=config.gateway.upstream_idle_timeout_s,
        )

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
        try:
            await self._attempts(course, deliver)
        except ApiError as error:
            course.status = error.status
            raise
        except asyncio.CancelledError:
            # The client left, or the server ends the request: it shuts down, or tells in this way that the client left.
            course.status = CLIENT_GONE_STATUS
            raise
        except Exception:
            course.status = 500
            raise

    async def _attempts(self, course: Course, deliver: Deliver) -> None:
        for attempt in range(1, self._max_attempts + 1):
            lost = _ReplicaLost()
            grant = await self._acquire(course, attempt, lost)
            course.usage = None
            try:
                async with asyncio.timeout(None) as scope:
                    lost.attach(scope)
                    await self._once(course, grant, deliver)
                return
            except asyncio.CancelledError:
                # The client left while the engine worked: its prompt is not free for that.
                course.usage = course.usage or TokenUsage(course.request.prompt_tokens)
                raise
            except (aiohttp.ClientError, ReplicaFailedError, TimeoutError) as error:
                course.failed_replicas += (grant.lease.replica_id,)
                if isinstance(error, aiohttp.ClientConnectorError):
                    course.leases.unreachable(grant.lease.replica_id)
                if course.begun or attempt == self._max_attempts:
                    message = f"the replica failed while serving this request ({type(error).__name__}); send it again"
                    raise ApiError(502, "replica_failed", message, retry_after_s=1.0) from error
            finally:
                course.leases.release(grant.lease.lease_id, course.usage)

    async def _acquire(self, course: Course, attempt: int, lost: _ReplicaLost) -> Grant:
        request = course.request
        now_s = time.time()
        # A second attempt keeps its place in the queue, and may wait as long again: the failure was not the client's.
        expires_at_s = (course.arrived_at_s if attempt == 1 else now_s) + course.max_wait_s
        if request.deadline_at_s is not None:
            expires_at_s = min(expires_at_s, request.deadline_at_s)
        ticket = Ticket(
            # With its owner: a worker that takes work over must not meet the ticket of the one it took it from.
            ticket_id=f"{course.request_id}.{attempt}@{course.leases.gateway_id}",
            owner=course.leases.gateway_id,
            tenant=course.caller.tenant,
            request_class=request.request_class,
            prompt_tokens=request.prompt_tokens,
            max_output_tokens=request.max_output_tokens,
            arrived_at_s=course.arrived_at_s,
            session=request.session,
            expires_at_s=expires_at_s,
            avoid=course.failed_replicas,
            key=course.caller.key_id,
            program=request.program,
            deadline_at_s=request.deadline_at_s,
            prefix=request.prefix,
        )
        patience_s = max(0.0, expires_at_s - now_s) + ACQUIRE_SLACK_S
        try:
            course.grant = await course.leases.acquire(ticket, lost.signal, patience_s)
        except RefusedError as refused:
            if attempt == 1 and course.elapsed_s() < ON_ARRIVAL_S:
                self._recent.note(course.kind, refused.refusal)
            raise ApiError.of_refusal(refused.refusal) from None
        finally:
            course.queue_wait_s = course.elapsed_s()
        return course.grant

    async def _once(self, course: Course, grant: Grant, deliver: Deliver) -> None:
        headers = {"Authorization": f"Bearer {grant.api_key}", "Content-Type": "application/json"}
        url = grant.base_url + course.request.path
        body = self._body(course.request, grant.deployment)
        async with self._session.post(url, data=body, headers=headers, timeout=self._timeout) as answer:
            course.status = answer.status
            # 401 and 403 are about our key to the engine (another one has taken the port), not about the client's.
            # 501 is about the path: every replica would say so.
            if (answer.status >= 500 and answer.status != 501) or answer.status in (401, 403):
                raise ReplicaFailedError(f"the engine answered {answer.status}: {(await answer.read())[:200]!r}")
            if answer.status >= 400:
                raise engine_error(answer.status, await answer.read(), course.request.path)
            await deliver(course, answer)

    def _body(self, request: GenerationRequest, deployment: str) -> bytes:
        """What this engine gets. A deployment that this gateway does not know yet gets the salt: harmless if unread."""
        kind = self._engine_kinds.get(deployment)
        if request.salt is None or (kind is not None and not takes_cache_salt(kind, request.path)):
            return request.body
        return with_salt(request.body, request.salt)

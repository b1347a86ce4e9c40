"""One generation request from lease to bill.

Lease -> the engine's server -> bytes to the client -> release and usage. Before the first byte a replica that fails is
replaced by another (up to `max_attempts`); after it, the stream ends with an error event. Whatever happens, the lease
is released once and one usage record is written.

Owns: the course of one request. Must not know: who grants leases, routes, authentication.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
import orjson

from cluster.config import GatewayConfig
from cluster.scheduling import Ticket, TokenUsage
from cluster.state import UsageRecord
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.errors import ApiError, engine_error
from serve_apps.gateway.http import ClientGoneError, Headers, Receive, Send, cancelled_on_disconnect, send_error
from serve_apps.gateway.request import GenerationRequest
from serve_apps.gateway.sse import EventStream, body_usage, patch_tier
from serve_apps.leases import LeaseClient, RefusedError
from serve_apps.messages import Grant

CLIENT_GONE_STATUS = 499
ACQUIRE_SLACK_S = 10.0
_PASSED_HEADERS = ("content-type",)


class ReplicaFailedError(Exception):
    """The replica could not serve this request; another may."""


@dataclass(slots=True)
class _Course:
    """What has happened to a request so far, for its bill."""

    request_id: str
    caller: Caller
    request: GenerationRequest
    started_s: float = field(default_factory=time.monotonic)
    deployment: str = ""
    queue_wait_s: float = 0.0
    ttft_s: float | None = None
    status: int = 0
    headers_sent: bool = False
    usage: TokenUsage | None = None
    failed_replicas: tuple[str, ...] = ()

    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_s

    def record(self) -> UsageRecord:
        usage = self.usage or TokenUsage()
        return UsageRecord(
            request_id=self.request_id,
            tenant=self.caller.tenant,
            key_id=self.caller.key_id,
            model=self.request.model,
            deployment=self.deployment,
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


class Relay:
    """Runs requests against engine replicas over persistent connections."""

    def __init__(self, session: aiohttp.ClientSession, config: GatewayConfig) -> None:
        self._session = session
        self._config = config
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=config.upstream_connect_timeout_s, sock_read=config.upstream_idle_timeout_s
        )

    async def run(
        self,
        request: GenerationRequest,
        caller: Caller,
        leases: LeaseClient,
        max_wait_s: float,
        receive: Receive,
        send: Send,
        finished: Callable[[UsageRecord], None],
    ) -> None:
        """Serve the request to its end, errors included; `finished` gets what to bill (no deployment: it never ran)."""
        course = _Course(f"req-{uuid.uuid4().hex}", caller, request)
        try:
            async with cancelled_on_disconnect(receive):
                await self._with_retries(course, leases, max_wait_s, send)
        except ClientGoneError:
            course.status = CLIENT_GONE_STATUS
        except ApiError as error:
            course.status = error.status
            await self._send_failure(course, error, send)
        except asyncio.CancelledError:
            # The server ends the request: it shuts down, or tells in this way that the client left.
            course.status = CLIENT_GONE_STATUS
            raise
        except Exception:
            course.status = 500
            raise
        finally:
            finished(course.record())

    async def _with_retries(self, course: _Course, leases: LeaseClient, max_wait_s: float, send: Send) -> None:
        arrived_at_s = time.time()
        for attempt in range(1, self._config.max_attempts + 1):
            lost = _ReplicaLost()
            grant = await self._acquire(course, leases, arrived_at_s, attempt, max_wait_s, lost)
            course.usage = None
            try:
                async with asyncio.timeout(None) as scope:
                    lost.attach(scope)
                    await self._once(course, leases, grant, send)
                return
            except asyncio.CancelledError:
                # The client left while the engine worked: its prompt is not free for that.
                course.usage = course.usage or TokenUsage(course.request.prompt_tokens)
                raise
            except (aiohttp.ClientError, ReplicaFailedError, TimeoutError) as error:
                course.failed_replicas += (grant.lease.replica_id,)
                if isinstance(error, aiohttp.ClientConnectorError):
                    leases.unreachable(grant.lease.replica_id)
                if course.headers_sent or attempt == self._config.max_attempts:
                    message = f"the replica failed while serving this request ({type(error).__name__}); send it again"
                    raise ApiError(502, "replica_failed", message, retry_after_s=1.0) from error
            finally:
                leases.release(grant.lease.lease_id, course.usage)

    async def _acquire(
        self,
        course: _Course,
        leases: LeaseClient,
        arrived_at_s: float,
        attempt: int,
        max_wait_s: float,
        lost: _ReplicaLost,
    ) -> Grant:
        request = course.request
        # A second attempt keeps its place in the queue, and may wait as long again: the failure was not the client's.
        expires_at_s = (arrived_at_s if attempt == 1 else time.time()) + max_wait_s
        ticket = Ticket(
            ticket_id=f"{course.request_id}.{attempt}",
            owner=leases.gateway_id,
            tenant=course.caller.tenant,
            request_class=request.request_class,
            prompt_tokens=request.prompt_tokens,
            max_output_tokens=request.max_output_tokens,
            arrived_at_s=arrived_at_s,
            session=request.session,
            expires_at_s=expires_at_s,
            avoid=course.failed_replicas,
        )
        try:
            grant = await leases.acquire(ticket, lost.signal, max_wait_s + ACQUIRE_SLACK_S)
        except RefusedError as refused:
            raise ApiError.of_refusal(refused.refusal) from None
        finally:
            course.queue_wait_s = course.elapsed_s()
        course.deployment = grant.deployment
        return grant

    async def _once(self, course: _Course, leases: LeaseClient, grant: Grant, send: Send) -> None:
        headers = {"Authorization": f"Bearer {grant.api_key}", "Content-Type": "application/json"}
        url = grant.base_url + course.request.path
        async with self._session.post(url, data=course.request.body, headers=headers, timeout=self._timeout) as answer:
            course.status = answer.status
            # 401 and 403 are about our key to the engine (another one has taken the port), not about the client's.
            if answer.status >= 500 or answer.status in (401, 403):
                raise ReplicaFailedError(f"the engine answered {answer.status}: {(await answer.read())[:200]!r}")
            if answer.status >= 400:
                raise engine_error(answer.status, await answer.read())
            passed = [(n.encode(), v.encode()) for n in _PASSED_HEADERS if (v := answer.headers.get(n)) is not None]
            if answer.content_type == "text/event-stream":
                await self._stream(course, leases, grant, answer, passed, send)
            else:
                await self._whole(course, answer, passed, send)

    async def _stream(
        self,
        course: _Course,
        leases: LeaseClient,
        grant: Grant,
        answer: aiohttp.ClientResponse,
        headers: Headers,
        send: Send,
    ) -> None:
        events = EventStream(course.request.tier, course.request.wants_usage)
        leases.watch(grant.lease.lease_id, events)
        try:
            async for chunk in answer.content.iter_any():
                block = events.feed(chunk)
                if not block:
                    continue
                if not course.headers_sent:
                    course.ttft_s = course.elapsed_s()
                    await self._send_head(course, headers, send)
                await send({"type": "http.response.body", "body": block, "more_body": True})
            if not course.headers_sent:
                raise ReplicaFailedError("the engine ended the stream before its first event")
            await send({"type": "http.response.body", "body": events.rest()})
        finally:
            # Without the engine's own count (the client left, the replica died) the bill is what was seen.
            seen = TokenUsage(course.request.prompt_tokens, 0, events.output_tokens)
            course.usage = events.usage or (seen if events.output_tokens else None)

    async def _whole(self, course: _Course, answer: aiohttp.ClientResponse, headers: Headers, send: Send) -> None:
        body = await answer.read()
        course.usage = body_usage(body) or TokenUsage(course.request.prompt_tokens)
        await self._send_head(course, headers, send)
        await send({"type": "http.response.body", "body": patch_tier(body, course.request.tier)})

    async def _send_head(self, course: _Course, headers: Headers, send: Send) -> None:
        course.headers_sent = True
        extra = [
            (b"x-tribes-request-id", course.request_id.encode()),
            (b"x-tribes-class", course.request.request_class.encode()),
            (b"x-tribes-queue-ms", f"{course.queue_wait_s * 1000:.1f}".encode()),
        ]
        await send({"type": "http.response.start", "status": course.status, "headers": headers + extra})

    async def _send_failure(self, course: _Course, error: ApiError, send: Send) -> None:
        """An error as a response, or, when the response has begun, as the stream's last event."""
        if not course.headers_sent:
            await send_error(send, error, course.request_id)
            return
        with contextlib.suppress(OSError):
            event = b"data: " + orjson.dumps({"error": error.fields()}) + b"\n\n"
            await send({"type": "http.response.body", "body": event})

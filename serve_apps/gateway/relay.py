"""The front of a course towards an HTTP client: the engine's bytes as they come, or an error in the shape of its API.

Owns: what the client sees of one generation request. Must not know: leases and retries (courses/course.py), routes,
authentication.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from functools import partial

from cluster.scheduling import TokenUsage
from cluster.state import UsageRecord
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.courses.course import Course, CourseRunner
from serve_apps.gateway.courses.engine_call import Answer, EventsAnswer, ReplicaFailedError
from serve_apps.gateway.courses.sent import ends, failure_in
from serve_apps.gateway.error_shapes import as_event
from serve_apps.gateway.errors import ApiError
from serve_apps.gateway.http import ClientGoneError, Headers, Receive, Send, cancelled_when_gone, send_error
from serve_apps.gateway.limits import rate_limit_headers
from serve_apps.gateway.request import GenerationRequest
from serve_apps.gateway.sse import patch_tier
from serve_apps.gateway.streams import body_usage_for, stream_for
from serve_apps.leases import LeaseClient

_PASSED_HEADERS = ("content-type", "x-tribes-upstream")


class Relay:
    """Serves requests to HTTP clients."""

    def __init__(self, courses: CourseRunner, patience_s: float) -> None:
        """`patience_s`: for how long a client may take nothing of its answer."""
        self._courses = courses
        self._patience_s = patience_s

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
        course = Course(f"req-{uuid.uuid4().hex}", caller, request, leases, max_wait_s)
        try:
            self._courses.check(course)
            async with cancelled_when_gone(receive, course.taken, self._patience_s):
                await self._courses.run(course, partial(_deliver, send))
        except ClientGoneError:
            pass
        except ApiError as error:
            await _send_failure(course, error, send)
        finally:
            finished(course.record())


async def _deliver(send: Send, course: Course, answer: Answer) -> None:
    passed = [(n.encode(), v.encode()) for n in _PASSED_HEADERS if (v := answer.headers.get(n)) is not None]
    if course.begun or answer.content_type == EventsAnswer.content_type:
        await _stream(course, answer, passed, send)
    else:
        await _whole(course, answer, passed, send)


async def _stream(course: Course, answer: Answer, headers: Headers, send: Send) -> None:
    request = course.request
    # One that goes on after a failure has a reader of its own.
    events, sent = course.stream or stream_for(request), course.sent
    course.watch(events)
    try:
        async for chunk in answer.content.iter_any():
            block = events.feed(chunk)
            if not block:
                continue
            if sent is not None and (failure := failure_in(block)) is not None:
                raise ReplicaFailedError(f"the engine failed in the middle of the stream: {failure}")
            if not course.begun:
                course.ttft_s = course.elapsed_s()
                await _send_head(course, headers, send)
            # In one message with the end of the answer, where that has come with it.
            course.complete = answer.content.over and not events.rest() and (sent is None or ends(block))
            course.sending = True
            await send({"type": "http.response.body", "body": block, "more_body": not course.complete})
            course.sending = False
            course.pieces += 1
            if sent is not None:
                sent.keep(block)
        if not course.begun:
            raise ReplicaFailedError("the engine ended the stream before its first event")
        if sent is not None and not sent.ended:
            raise ReplicaFailedError("the engine ended the stream before its last event")
        if not course.complete:
            course.complete = True
            await send({"type": "http.response.body", "body": events.rest()})
    finally:
        # Without the engine's own count (the client left, the replica died) the bill is what was seen.
        seen = TokenUsage(request.prompt_tokens, 0, course.resumed_tokens + events.output_tokens)
        course.usage = events.usage or (seen if seen.output_tokens else None)
        course.counted = events.usage is not None


async def _whole(course: Course, answer: Answer, headers: Headers, send: Send) -> None:
    body = await answer.read()
    course.usage = body_usage_for(course.request, body)
    await _send_head(course, headers, send)
    course.complete = True
    await send({"type": "http.response.body", "body": patch_tier(body, course.request.tier)})


async def _send_head(course: Course, headers: Headers, send: Send) -> None:
    course.begun = True
    assert course.grant is not None
    extra = [
        (b"x-tribes-request-id", course.request_id.encode()),
        (b"x-tribes-class", course.request.request_class.encode()),
        (b"x-tribes-queue-ms", f"{course.queue_wait_s * 1000:.1f}".encode()),
    ]
    limits = rate_limit_headers(course.grant.rate_limits)
    await send({"type": "http.response.start", "status": course.status, "headers": headers + extra + limits})


async def _send_failure(course: Course, error: ApiError, send: Send) -> None:
    """An error as a response, or, when the response has begun, as the stream's last event."""
    if not course.begun:
        await send_error(send, error, course.request.path, course.request_id)
        return
    with contextlib.suppress(OSError):
        await send({"type": "http.response.body", "body": as_event(error, course.request.path)})

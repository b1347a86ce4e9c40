"""The front of a course towards a worker: one generation request through the shared queue, with nobody connected.

A run that ends without an answer worth keeping (refused, replicas failed, cancelled) is not billed: the worker runs the
same work again under the same id, and the ledger keeps one record an id.

Owns: what a worker sees of one generation request. Must not know: leases and retries (courses/course.py), the rows of
the work.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cluster.config import TribesConfig
from cluster.scheduling import TokenUsage
from cluster.state import UsageRecord
from cluster.vocabulary import RequestClass
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.catalogue import Catalogue
from serve_apps.gateway.courses.course import Course, CourseRunner, Courses
from serve_apps.gateway.courses.engine_call import Answer
from serve_apps.gateway.courses.replica_health import Happened, untold
from serve_apps.gateway.doors import BY_PATH, DOORS
from serve_apps.gateway.engine_client import EngineClient
from serve_apps.gateway.errors import ApiError
from serve_apps.gateway.hints import Hints
from serve_apps.gateway.request import parse_request
from serve_apps.gateway.sse import patch_tier
from serve_apps.gateway.streams import body_usage_for
from serve_apps.gateway.upstreams.courses import WithUpstreams
from serve_apps.gateway.upstreams.routes import Upstreams
from serve_apps.leases import LeaseClient

PATIENCE_S = 3600.0
"""How long one run without a deadline waits for its turn."""


@dataclass(frozen=True)
class Outcome:
    """How a request ended: the engine's or the queue's status, and a body in OpenAI's shape."""

    status: int
    body: bytes
    request_id: str
    usage: TokenUsage | None
    retry_after_s: float | None = None

    @property
    def worth_another_run(self) -> bool:
        """The service failed, not the request: the same work may succeed later."""
        return self.status == 429 or self.status >= 500


class Headless:
    """Runs requests for workers. `upstreams`: those that take accepted work; None where there are none."""

    def __init__(
        self,
        client: EngineClient,
        config: TribesConfig,
        finished: Callable[[UsageRecord], None],
        upstreams: Upstreams | None = None,
        happened: Happened = untold,
    ) -> None:
        self._catalogue = Catalogue(config)
        courses = Courses(client, config, happened)
        self._courses: CourseRunner = WithUpstreams(courses, upstreams) if upstreams is not None else courses
        self._finished = finished

    async def run(
        self,
        path: str,
        body: bytes,
        caller: Caller,
        leases: LeaseClient,
        *,
        request_class: RequestClass,
        request_id: str,
        deadline_at_s: float | None,
    ) -> Outcome:
        """Run the request to its end. `request_id` is the ledger's key and the same in every run of the same work.

        Cancelling withdraws the ticket, or aborts the engine's request.
        """
        try:
            if path not in DOORS:
                known = ", ".join(sorted(BY_PATH))
                raise ApiError(400, "invalid_url", f"no request can be run at {path!r}; use one of {known}")
            request = parse_request(
                path, body, caller, self._catalogue, Hints(), request_class=request_class, deadline_at_s=deadline_at_s
            )
        except ApiError as error:
            return Outcome(error.status, error.body(), request_id, None)
        # A class's bound on waiting is for clients that are connected; a worker keeps its place in the queue.
        course = Course(request_id, caller, request, leases, max_wait_s=PATIENCE_S)
        if deadline_at_s is not None:
            course.max_wait_s = max(0.0, deadline_at_s - course.arrived_at_s)
        answer = bytearray()
        try:
            await self._courses.run(course, _into(answer))
        except ApiError as error:
            outcome = Outcome(error.status, error.body(), request_id, None, error.retry_after_s)
        else:
            outcome = Outcome(course.status, patch_tier(bytes(answer), request.tier), request_id, course.usage)
        if not outcome.worth_another_run:
            self._finished(course.record())
        return outcome


def _into(answer: bytearray) -> Callable[[Course, Answer], Awaitable[None]]:
    async def deliver(course: Course, response: Answer) -> None:
        answer[:] = await response.read()
        course.usage = body_usage_for(course.request, bytes(answer))

    return deliver

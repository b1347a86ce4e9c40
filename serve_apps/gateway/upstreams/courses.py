"""When a request goes to an upstream: after our own replicas refused or failed it, and before its first byte.

    on_failure    no replica of ours could serve it: all that were tried failed, the queue cannot be reached, or it
                  ended in the queue while no replica was ready
    on_overload   also: the queue was full, it had to make room for another, or it waited too long (`wait_s`)

A tenant's own limits (rates, budgets, its places in the queue) never lead there, nor does what is wrong with the
request itself. Where no upstream serves it either, the client hears our own refusal; one that was cut short by `wait_s`
goes back to the queue first, with the arrival time that it had.

Owns: that decision. Must not know: which upstreams there are, what they cost, how they are asked.
"""

from __future__ import annotations

import time

from serve_apps.gateway.courses.course import Course, CourseRunner, Deliver
from serve_apps.gateway.errors import ApiError
from serve_apps.gateway.ready_replicas import ReadyReplicas
from serve_apps.gateway.upstreams.routes import Route, Upstreams

_OVERLOAD = frozenset({"queue_full", "shed", "queue_timeout"})
_FAILURE = frozenset({"replica_failed", "dispatcher_unavailable", "class_not_served"})


class WithUpstreams:
    """A runner of courses with somewhere else to go."""

    def __init__(self, inner: CourseRunner, upstreams: Upstreams) -> None:
        self._inner = inner
        self._upstreams = upstreams
        self._ready = ReadyReplicas()

    def check(self, course: Course) -> None:
        """Raise ApiError if it is known without asking that nobody would serve the request."""
        try:
            self._inner.check(course)
        except ApiError as error:
            routes = [route for route in self._upstreams.routes(course) if route.use == "on_overload"]
            if error.code not in _OVERLOAD or not any(map(self._upstreams.is_open, routes)):
                raise
            course.refused = error

    async def run(self, course: Course, deliver: Deliver) -> None:
        """As the inner runner's, with an upstream in its place where that may be."""
        routes = self._upstreams.routes(course)
        with course.noting_its_end():
            if self._upstreams.alone(course.request.model):
                await self._alone(course, deliver, routes)
            elif not routes:
                await self._inner.run(course, deliver)
            else:
                await self._first_ours(course, deliver, routes)

    async def _alone(self, course: Course, deliver: Deliver, routes: list[Route]) -> None:
        if not routes:
            model, tenant = course.request.model, course.caller.tenant
            message = f"model {model!r} is not there for tenant {tenant!r}: no upstream that has it may serve it here"
            raise ApiError(404, "model_not_found", message, param="model")
        await self._upstreams.serve(course, deliver, routes)

    async def _first_ours(self, course: Course, deliver: Deliver, routes: list[Route]) -> None:
        refused, cut_short = await self._ours(course, deliver, routes)
        if refused is None:
            return
        if course.begun or _too_late(course):
            raise refused
        if allowed := await self._allowed(course, routes, refused):
            try:
                await self._upstreams.serve(course, deliver, allowed)
                return
            except ApiError:
                if course.begun:
                    raise
        if not cut_short or refused.code != "queue_timeout":
            raise refused
        await self._inner.run(course, deliver)

    async def _ours(self, course: Course, deliver: Deliver, routes: list[Route]) -> tuple[ApiError | None, bool]:
        """How our own replicas refused it, if they did, and whether it might have waited longer."""
        if course.refused is not None:
            return course.refused, False
        patience_s = course.max_wait_s
        waits = [r.client.config.wait_s for r in routes if r.client.config.wait_s and self._upstreams.is_open(r)]
        course.max_wait_s = min([patience_s, *waits])
        try:
            await self._inner.run(course, deliver)
        except ApiError as error:
            return error, course.max_wait_s < patience_s
        finally:
            course.max_wait_s = patience_s
        return None, False

    async def _allowed(self, course: Course, routes: list[Route], refused: ApiError) -> list[Route]:
        if refused.code in _FAILURE:
            return routes
        if refused.code not in _OVERLOAD:
            return []
        if all(route.use == "on_overload" for route in routes):
            return routes
        if not await self._ready.any_of(course.request.model, course.leases):
            return routes
        return [route for route in routes if route.use == "on_overload"]


def _too_late(course: Course) -> bool:
    deadline_at_s = course.request.deadline_at_s
    return deadline_at_s is not None and deadline_at_s <= time.time()

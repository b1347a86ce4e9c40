"""Attempts at a request, one after the other or two that race for the first event.

Owns: their tickets: how long they wait, whom they avoid. Must not know: what an attempt does with its lease
(attempt.py), whether there will be another one (course.py).
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from cluster.config import TribesConfig
from cluster.scheduling import Ticket
from serve_apps.gateway.courses.attempt import Attempt, Tools
from serve_apps.gateway.courses.engine_call import EngineCalls, broken
from serve_apps.gateway.courses.hedging import Claim, first_to_begin
from serve_apps.gateway.courses.replica_health import ReplicaHealth
from serve_apps.gateway.courses.tickets import ticket_of
from serve_apps.gateway.engine_client import EngineClient
from serve_apps.gateway.errors import ApiError
from serve_apps.gateway.recent_refusals import RecentRefusals
from serve_apps.leases import RefusedError
from serve_apps.messages import Grant

if TYPE_CHECKING:
    from serve_apps.gateway.courses.course import Course, Deliver

ON_ARRIVAL_S = 0.5
"""A refusal that takes longer is about a request that waited, and says nothing about new ones."""


class Attempts:
    """Runs attempts against the replicas of all models."""

    def __init__(self, client: EngineClient, config: TribesConfig, recent: RecentRefusals) -> None:
        kinds = {name: item.engine.kind for name, item in config.deployments.items()}
        self._tools = Tools(EngineCalls(client), config.gateway.stall_timeout_s, kinds)
        self._recent = recent
        self._hedge = config.gateway.hedge

    async def run(self, course: Course, number: int, health: ReplicaHealth, deliver: Deliver) -> None:
        """The attempt of that number, and another one beside it if it is slow to begin. Raises as `Attempt.run`."""
        attempt = Attempt(self._tools, course, health, deliver)
        first = course.grant = await self._acquire(attempt, course, number, health)
        if self._hedge is None or course.begun or not course.request.stream:
            await attempt.run()
            return
        course.usage = None
        second = partial(self._second, course, number, health, deliver, first.lease.replica_id)
        try:
            await first_to_begin(attempt.run, second, self._hedge.after_s, health.may_hedge)
        finally:
            if course.grant is not first:
                health.hedge_won()

    async def _acquire(self, attempt: Attempt, course: Course, number: int, health: ReplicaHealth) -> Grant:
        # A second attempt keeps its place in the queue, and may wait as long again: the failure was not the client's.
        expires_at_s = (course.arrived_at_s if number == 1 else time.time()) + course.max_wait_s
        try:
            return await attempt.acquire(_ticket(course, f"{number}", expires_at_s, health))
        except RefusedError as refused:
            if number == 1 and course.elapsed_s() < ON_ARRIVAL_S:
                self._recent.note(course.kind, refused.refusal)
            if course.begun:
                raise broken(f", and no other one took it ({refused.refusal.message})") from None
            raise ApiError.of_refusal(refused.refusal) from None
        finally:
            if not course.begun:
                course.queue_wait_s = course.elapsed_s()

    async def _second(
        self, course: Course, number: int, health: ReplicaHealth, deliver: Deliver, beside: str, claim: Claim
    ) -> None:
        """The same once more on another replica than `beside`, if there is one that takes it soon."""
        assert self._hedge is not None
        attempt = Attempt(self._tools, course, health, deliver, first=False)
        ticket = _ticket(course, f"{number}h", time.time() + self._hedge.after_s, health, beside)
        try:
            grant = await attempt.acquire(ticket)
        except RefusedError:
            return  # nobody has room for it: the first one goes on alone
        if grant.lease.replica_id == beside:
            attempt.give_up()
        else:
            await attempt.run(claim)


def _ticket(course: Course, attempt: str, expires_at_s: float, health: ReplicaHealth, *beside: str) -> Ticket:
    deadline_at_s = course.request.deadline_at_s
    if deadline_at_s is not None:
        expires_at_s = min(expires_at_s, deadline_at_s)
    avoid = course.failed_replicas + health.open_replicas() + beside
    return ticket_of(course, attempt, expires_at_s, tuple(dict.fromkeys(avoid)) if avoid else ())

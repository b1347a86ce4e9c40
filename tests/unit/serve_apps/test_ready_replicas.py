"""Whether replicas are ready is asked beside the requests that want to know."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.scheduling import Refusal
from serve_apps.gateway import ready_replicas
from serve_apps.gateway.ready_replicas import ReadyReplicas
from serve_apps.leases import RefusedError


class Queue:
    """Says what it is told to, when it is told to."""

    def __init__(self) -> None:
        self.state = "ready"
        self.asked = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def status(self) -> dict[str, Any]:
        self.asked += 1
        await self.answers.wait()
        if self.state == "away":
            raise RefusedError(Refusal("", 503, "dispatcher_unavailable", "away", 1.0))
        return {"replicas": [{"state": "starting"}, {"state": self.state}]}


async def test_a_queue_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ready, queue = ReadyReplicas(), Queue()
    leases: Any = queue
    assert await ready.any_of("m", leases)
    monkeypatch.setattr(ready_replicas, "READY_FRESH_S", 0.0)
    queue.answers.clear()
    queue.state = "away"
    async with asyncio.timeout(1):
        assert [await ready.any_of("m", leases) for _ in range(3)] == [True] * 3  # what it said before
        await asyncio.sleep(0)
        assert queue.asked == 2
    queue.answers.set()
    await asyncio.sleep(0.01)
    assert not await ready.any_of("m", leases)


async def test_old_answers_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready_replicas, "READY_FRESH_S", 0.0)
    monkeypatch.setattr(ready_replicas, "READY_TRUSTED_S", 0.0)
    ready, queue = ReadyReplicas(), Queue()
    leases: Any = queue
    assert await ready.any_of("m", leases)
    queue.state = "starting"
    assert not await ready.any_of("m", leases)

"""kill -9 of the dispatcher under streaming load of two tenants, on a real Ray cluster with scripted engines.

Checked: every stream has its full text, whoever waits is served in its tenant's order of arrival, tenants' counters go
on where they were, and the queue is back within seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.support.stack import Stack

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]
MODEL = "tiny"
SLOTS = 16
BACK_WITHIN_S = 10.0
LONG = {"tokens": 400, "itl_ms": 50}
SHORT = {"tokens": 40, "itl_ms": 5}
WAITING = 8
APART_S = 0.25
"""Between two requests of a tenant: long enough for the order in which they arrive to be certain."""
CLOCKS_S = 0.2
"""How exactly the moment of a grant is known here: when it was sent, and how long the gateway says that it waited."""


def words(count: int) -> list[str]:
    return [f" w{number}" for number in range(count)]


class Tenant:
    """A tenant with streams that run and requests that wait."""

    def __init__(self, stack: Stack, name: str) -> None:
        self.name = name
        key = stack.key(name)
        self._api = AsyncOpenAI(base_url=f"{stack.base_url}/v1", api_key=key, max_retries=0, timeout=120)
        self.running: list[asyncio.Task[float]] = []
        self.waiting: list[asyncio.Task[float]] = []

    def run(self, count: int) -> None:
        self.running += [asyncio.create_task(self._stream(LONG)) for _ in range(count)]

    def wait(self) -> None:
        self.waiting.append(asyncio.create_task(self._stream(SHORT)))

    async def _stream(self, script: dict[str, int]) -> float:
        """Checks the whole text; returns when the request was granted its lease."""
        sent_s = time.monotonic()
        answer = await self._api.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=[{"role": "user", "content": "go"}],
            stream=True,
            max_tokens=script["tokens"],
            extra_body={"x_script": script},
        )
        deltas = [c.choices[0].delta.content async for c in answer.parse() if c.choices]
        assert [delta for delta in deltas if delta] == words(script["tokens"])
        return sent_s + float(answer.headers["x-tribes-queue-ms"]) / 1000


def online(status: dict[str, Any]) -> dict[str, Any]:
    return dict(status["classes"]["online"])


async def ask(stack: Stack, what: str, condition: Any, timeout_s: float) -> float:
    return await asyncio.to_thread(stack.wait, what, condition, timeout_s, 0.05)


async def test_killed_under_load(stack: Stack) -> None:
    tenants = [Tenant(stack, "a"), Tenant(stack, "b")]  # weights 1 and 2
    await ask(stack, "two replicas", lambda: len(stack.replicas(MODEL, "tiny-online")) == 2, 60)
    for tenant in tenants:
        tenant.run(SLOTS // 2)
    await ask(stack, "streams run", lambda: _running(stack) == SLOTS, 20)
    for _ in range(WAITING):
        for tenant in tenants:
            tenant.wait()
        await asyncio.sleep(APART_S)
    await ask(stack, "the others wait", lambda: online(stack.status(MODEL))["waiting"] == 2 * WAITING, 10)
    await asyncio.sleep(1.2)  # gateways are given the counters once a second
    before = stack.status(MODEL)
    os.kill(before["pid"], signal.SIGKILL)
    killed_s = time.monotonic()

    def is_back() -> bool:
        after = stack.status(MODEL)
        everybody = after["gateways"] == before["gateways"] and _running(stack) == SLOTS
        return bool(after["pid"] != before["pid"] and everybody and online(after)["waiting"] == 2 * WAITING)

    await ask(stack, "all that waited and ran is back", is_back, BACK_WITHIN_S)
    back_s = time.monotonic() - killed_s
    after = stack.status(MODEL)
    for tenant in tenants:
        was, now = (online(s)["service_by_tenant"][tenant.name] for s in (before, after))
        # Streams go on and are charged as they go; a counter never falls behind what it was.
        assert was > 0 and 0.95 * was <= now, (was, now)
    for tenant in tenants:
        await asyncio.gather(*tenant.running)
        granted_s = await asyncio.gather(*tenant.waiting)
        assert granted_s[0] > killed_s
        assert all(later > earlier - CLOCKS_S for earlier, later in itertools.pairwise(granted_s)), granted_s
    await ask(stack, "leases given back", lambda: _running(stack) == 0, 10)
    print(f"back after {back_s:.1f} s")


def _running(stack: Stack) -> int:
    return sum(r["running"] for r in stack.replicas(MODEL, "tiny-online"))

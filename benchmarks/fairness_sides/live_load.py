"""An open-loop load of many tenants over HTTP: each request leaves when its time has come, whatever became of others.

Times to first token count from the planned time, so that a late client is not taken for a fast server. Owns: the plan
of a run, sending it, what each answer took. Must not know: who answers, what is compared.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import aiohttp

QUIET_PREFIX, NOISY = "quiet-", "noisy"
PATIENCE_S = 90.0
"""After the last planned request this long is waited for answers that count."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One request: when, whose, what."""

    at_s: float
    tenant: str
    prompt: str
    tokens: int

    @property
    def quiet(self) -> bool:
        return self.tenant.startswith(QUIET_PREFIX)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of it. `ttft_s` is None when no token came; `status` 0 when the connection failed."""

    planned: Planned
    status: int
    ttft_s: float | None


@dataclass(frozen=True, slots=True)
class Load:
    """What one tenant, or each of several, offers."""

    tenants: tuple[str, ...]
    rate_per_s: float
    """Of all of them together."""
    tokens: int


def plan(loads: Sequence[Load], seconds: float, seed: str, salt: str) -> list[Planned]:
    """Random arrivals that depend on `seed` and the tenant only: with a noisy tenant or without one, the quiet ones ask
    at the same times. `salt` makes the prompts of this run unlike those of any other, so that no run profits from what
    another left in a prefix cache."""
    planned: list[Planned] = []
    for load in loads:
        for tenant in load.tenants:
            rng = random.Random(f"{seed}-{tenant}")
            rate_per_s = load.rate_per_s / len(load.tenants)
            at_s = rng.expovariate(rate_per_s)
            while at_s < seconds:
                prompt = f"{salt} {len(planned)}: tell me something worth knowing about the number {len(planned)}."
                planned.append(Planned(at_s, tenant, prompt, load.tokens))
                at_s += rng.expovariate(rate_per_s)
    return sorted(planned, key=lambda p: p.at_s)


async def offer(
    base_url: str, keys: Mapping[str, str], model: str, planned: Sequence[Planned], patience_s: float = PATIENCE_S
) -> list[Answer]:
    """Send everything at its time. Returns when the quiet tenants' answers are there; the others' are broken off."""
    timeout = aiohttp.ClientTimeout(total=None, sock_read=patience_s)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        started_s = time.perf_counter()
        tasks: list[tuple[Planned, asyncio.Task[Answer]]] = []
        for one in planned:
            await asyncio.sleep(started_s + one.at_s - time.perf_counter())
            due_s = started_s + one.at_s
            tasks.append((one, asyncio.create_task(_ask(session, base_url, keys[one.tenant], model, one, due_s))))
        counted = [task for one, task in tasks if one.quiet]
        if counted:
            await asyncio.wait(counted, timeout=patience_s)
        for _, task in tasks:
            task.cancel()
        ended = await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)
    return [
        answer if isinstance(answer, Answer) else Answer(one, 0, None)
        for (one, _), answer in zip(tasks, ended, strict=True)
    ]


async def _ask(
    session: aiohttp.ClientSession, base_url: str, key: str, model: str, one: Planned, due_s: float
) -> Answer:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": one.prompt}],
        "max_tokens": one.tokens,
        "temperature": 0,
        "ignore_eos": True,  # both engines take it: every answer has the same length
        "stream": True,
    }
    headers = {"Authorization": f"Bearer {key}"}
    ttft_s: float | None = None
    status = 0
    try:
        async with session.post(f"{base_url}/v1/chat/completions", json=body, headers=headers) as answer:
            status = answer.status
            async for line in answer.content:
                if ttft_s is None and _has_text(line):
                    ttft_s = time.perf_counter() - due_s
    except (aiohttp.ClientError, TimeoutError):
        return Answer(one, 0, ttft_s)
    return Answer(one, status, ttft_s if status == 200 else None)


def _has_text(line: bytes) -> bool:
    return line.startswith(b"data: {") and b'"content":"' in line and b'"content":""' not in line

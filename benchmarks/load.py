"""A closed-loop streaming load over HTTP. Owns: timing of streams as a client sees them. Must not know: who answers."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from benchmarks.report import percentile

READ_TIMEOUT_S = 400.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go."""

    base_url: str
    api_key: str


@dataclass(slots=True)
class Stream:
    """One streamed answer: seconds to the first event with text, gaps between events, tokens."""

    ttft_s: float
    gaps_s: list[float]
    total_s: float
    tokens: int


async def measure(
    target: Target, model: str, prompts: list[str], concurrency: int, tokens: int, **body: object
) -> dict[str, float]:
    """Send every prompt once, `concurrency` at a time; latency in ms, rate in tokens/s. `body`: more fields."""
    queue = list(reversed(prompts))
    streams: list[Stream] = []
    headers = {"Authorization": f"Bearer {target.api_key}"}
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=READ_TIMEOUT_S)

    async def worker(session: aiohttp.ClientSession) -> None:
        while queue:
            streams.append(await _stream(session, target, model, queue.pop(), tokens, body))

    async with aiohttp.ClientSession(headers=headers, connector=connector, timeout=timeout) as session:
        started = time.perf_counter()
        await asyncio.gather(*(worker(session) for _ in range(concurrency)))
        elapsed_s = time.perf_counter() - started
    ttft = [s.ttft_s * 1e3 for s in streams]
    gaps = [gap * 1e3 for s in streams for gap in s.gaps_s]
    return {
        "ttft_p50_ms": percentile(ttft, 50),
        "ttft_p95_ms": percentile(ttft, 95),
        "itl_p50_ms": percentile(gaps, 50),
        "itl_p95_ms": percentile(gaps, 95),
        "tokens_per_s": sum(s.tokens for s in streams) / elapsed_s,
        "requests": float(len(streams)),
    }


async def _stream(
    session: aiohttp.ClientSession, target: Target, model: str, prompt: str, tokens: int, more: Mapping[str, object]
) -> Stream:
    body = {
        **more,
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,  # both engines take it: every answer has the same length
        "stream": True,
    }
    started = time.perf_counter()
    times: list[float] = []
    async with session.post(f"{target.base_url}/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if line.startswith(b"data: {") and b'"content":"' in line and b'"content":""' not in line:
                times.append(time.perf_counter())
    ended = time.perf_counter()
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return Stream(times[0] - started, gaps, ended - started, tokens)

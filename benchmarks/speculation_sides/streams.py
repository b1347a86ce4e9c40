"""A streamed answer that knows how many tokens came with each event. Owns: its timing. Must not know: who answers.

With speculation one event brings several tokens, so a gap between events is no gap between tokens. Two views:
per token, each event's gap divided over its tokens; and per event, what a reader sees as a pause.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field

import aiohttp

from benchmarks.load import Target
from benchmarks.report import percentile

REQUEST_TIMEOUT_S = 300.0


@dataclass(slots=True)
class Stream:
    """One answer, as its client saw it."""

    text: str = ""
    ttft_s: float = 0.0
    total_s: float = 0.0
    tokens: int = 0
    gaps: list[tuple[float, int]] = field(default_factory=list)
    """(seconds since the event before, tokens in this one), from the second event on."""

    def take(self, seconds: float, since_last_s: float, text: str, tokens: int) -> None:
        """One event with tokens; the first is the first token's time."""
        if self.tokens == 0:
            self.ttft_s = seconds
        else:
            self.gaps.append((since_last_s, tokens))
        self.text += text
        self.tokens += tokens


async def streams(target: Target, model: str, prompts: list[str], concurrency: int, tokens: int) -> list[Stream]:
    """Every prompt once, `concurrency` at a time, greedily; in the order of the prompts."""
    gate = asyncio.Semaphore(concurrency)
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {target.api_key}"}
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:

        async def one(prompt: str) -> Stream:
            async with gate:
                return await _stream(session, target, model, prompt, tokens)

        return list(await asyncio.gather(*(one(prompt) for prompt in prompts)))


async def _stream(session: aiohttp.ClientSession, target: Target, model: str, prompt: str, tokens: int) -> Stream:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "return_token_ids": True,  # to count them: an event may hold several
    }
    stream, started_s = Stream(), time.perf_counter()
    last_s = started_s
    async with session.post(f"{target.base_url}/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            text, count = read_event(line)
            if count:
                now_s = time.perf_counter()
                stream.take(now_s - started_s, now_s - last_s, text, count)
                last_s = now_s
    stream.total_s = time.perf_counter() - started_s
    return stream


def read_event(line: bytes) -> tuple[str, int]:
    """(text, tokens) of one `data:` line."""
    event = json.loads(line.removeprefix(b"data: "))
    if "error" in event:
        raise RuntimeError(f"the engine broke off: {event['error']}")
    text, count = "", 0
    for choice in event.get("choices") or ():
        text += (choice.get("delta") or {}).get("content") or ""
        count += len(choice.get("token_ids") or ())
    return text, count


def figures(answers: list[Stream], elapsed_s: float) -> dict[str, float]:
    """Latency in ms, rate in tokens/s."""
    ttft = [a.ttft_s * 1e3 for a in answers]
    per_token = [gap * 1e3 / count for a in answers for gap, count in a.gaps for _ in range(count)]
    per_event = [gap * 1e3 for a in answers for gap, _ in a.gaps]
    tokens = sum(a.tokens for a in answers)
    if not per_token:
        raise RuntimeError("no answer has a second event; is this an engine that streams token ids?")
    return {
        "requests": float(len(answers)),
        "tokens": float(tokens),
        "tokens_per_s": tokens / elapsed_s,
        "ttft_p50_ms": percentile(ttft, 50),
        "ttft_p95_ms": percentile(ttft, 95),
        "itl_mean_ms": sum(per_token) / len(per_token),
        "itl_p50_ms": percentile(per_token, 50),
        "itl_p95_ms": percentile(per_token, 95),
        "pause_p50_ms": percentile(per_event, 50),
        "pause_p95_ms": percentile(per_event, 95),
    }

"""Role: how long an engine's steps take, seen through its OpenAI API. Owns: the runs, and what a stream's times mean.

Prompts are random token ids of exact length: nothing is found in a prefix cache. One request alone, after prompts of
several lengths, gives times until the first token; several at once, with short and long prompts, give times of steps,
taken while all of them decode. Nothing else may use the engine meanwhile. Must not know: the fit.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import httpx

from cluster.planning.fit import Sample

REQUEST_TIMEOUT_S: Final = 600.0
_IDS: Final = (256, 8192)
"""Ordinary tokens in every vocabulary of use."""
_FEWEST_STEPS: Final = 4
_MOST_CACHE: Final = 0.8
_VLLM_BLOCKS: Final = re.compile(r"^vllm:cache_config_info\{(?P<labels>[^}]*)\}", re.MULTILINE)
_SGLANG_TOKENS: Final = re.compile(r"^sglang:max_total_num_tokens(?:\{[^}]*\})? (?P<tokens>[0-9.e+]+)", re.MULTILINE)


class MeasureError(Exception):
    """The engine could not be measured; the message names the cure."""


@dataclass(frozen=True, slots=True)
class Effort:
    """What is run."""

    prompt_tokens: tuple[int, ...] = (64, 256, 1024)
    sequences: tuple[int, ...] = (1, 4, 16)
    output_tokens: int = 32
    repeats: int = 3


@dataclass(frozen=True, slots=True)
class Stream:
    """Moments of one answer's events, in seconds of this process's clock."""

    began_s: float
    events_s: tuple[float, ...]
    output_tokens: int


class EngineClient:
    """An engine's own server. Through a gateway, its queue would be measured, too."""

    def __init__(self, client: httpx.AsyncClient, model: str, seed: int = 0) -> None:
        self._client = client
        self._model = model
        self._random = random.Random(seed)

    async def answer(self, prompt_tokens: int, output_tokens: int) -> Stream:
        ids = [self._random.randrange(*_IDS) for _ in range(prompt_tokens)]
        body = {
            "model": self._model,
            "prompt": ids,
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began_s, tokens = time.monotonic(), 0
        moments: list[float] = []
        async with self._client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")[:300]
                raise MeasureError(f"the engine answered {response.status_code}: {text}")
            async for event in _events(response):
                if event.get("error"):
                    raise MeasureError(f"the engine broke off: {event['error']}")
                choices = event.get("choices") or ()
                if any(choice.get("text") for choice in choices):
                    moments.append(time.monotonic())
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        if not moments:
            raise MeasureError("the engine produced no text; check that the model generates")
        return Stream(began_s, tuple(moments), tokens or len(moments))

    async def limits(self) -> tuple[int | None, int | None]:
        """(longest context, tokens in the KV cache), as far as the engine tells."""
        listed = (await self._client.get("/v1/models")).json()
        known = {item.get("id"): item for item in listed.get("data", ())}
        if self._model not in known:
            raise MeasureError(f"the engine has no model {self._model!r}; it serves {', '.join(map(str, known))}")
        context = known[self._model].get("max_model_len")
        metrics = await self._client.get("/metrics")
        tokens = cache_tokens(metrics.text) if metrics.status_code == 200 else None
        return context if isinstance(context, int) else None, tokens


def cache_tokens(metrics: str) -> int | None:
    """Room for tokens, as the engines' metrics tell it."""
    if found := _VLLM_BLOCKS.search(metrics):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', found["labels"]))
        blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
        return int(blocks) * int(size) if blocks.isdecimal() and size.isdecimal() else None
    if found := _SGLANG_TOKENS.search(metrics):
        return int(float(found["tokens"]))
    return None


async def measure(
    engine: EngineClient, effort: Effort, on_progress: Callable[[str], None] = lambda line: None
) -> tuple[list[Sample], int | None]:
    """Samples for `fit`, and the tokens of the KV cache where the engine tells them."""
    context, cache = await engine.limits()
    room = min((limit for limit in (context, cache) if limit), default=None)
    longest = (room or max(effort.prompt_tokens) + effort.output_tokens) - effort.output_tokens
    prompts = sorted({length for length in effort.prompt_tokens if length <= longest})
    if len(prompts) < 2:
        raise MeasureError(f"the engine takes prompts of {longest} tokens; give two lengths below that")
    on_progress("warming up")
    await engine.answer(prompts[0], effort.output_tokens)
    samples = []
    for length in prompts:
        on_progress(f"first tokens after prompts of {length} tokens")
        samples.append(await _first_token(engine, length, effort.repeats))
    for count in effort.sequences:
        for length in (prompts[0], prompts[-1]):
            if cache and count * (length + effort.output_tokens) > _MOST_CACHE * cache:
                continue  # some would wait, or be thrown out again
            on_progress(f"steps of {count} answers after prompts of {length} tokens")
            for _ in range(effort.repeats):
                samples += await _steps(engine, count, length, effort.output_tokens)
    return samples, cache


async def _first_token(engine: EngineClient, length: int, repeats: int) -> Sample:
    streams = [await engine.answer(length, 1) for _ in range(repeats)]
    return Sample(median(s.events_s[0] - s.began_s for s in streams), length, 1, 0, first_token=True)


async def _steps(engine: EngineClient, count: int, length: int, output_tokens: int) -> list[Sample]:
    """One sample, from the time in which all answers run; none if that is too short."""
    streams = await asyncio.gather(*(engine.answer(length, output_tokens) for _ in range(count)))
    sample = steady(streams, length)
    return [sample] if sample else []


def steady(streams: Sequence[Stream], prompt_tokens: int) -> Sample | None:
    """The mean step while all of them decode; None where that was too short to tell."""
    begin = max(stream.events_s[0] for stream in streams)
    end = min(stream.events_s[-1] for stream in streams)
    seconds, steps, held = 0.0, 0.0, 0.0
    for stream in streams:
        per_event = stream.output_tokens / len(stream.events_s)  # an event may carry several tokens
        inside = [moment for moment in stream.events_s if begin <= moment <= end]
        if (len(inside) - 1) * per_event < _FEWEST_STEPS:
            return None
        # From its own first to its own last: events of one step are not seen at one moment.
        seconds += inside[-1] - inside[0]
        steps += (len(inside) - 1) * per_event
        before = sum(1 for moment in stream.events_s if moment < begin)
        held += prompt_tokens + (before + len(inside) / 2) * per_event
    return Sample(seconds / steps, 0, len(streams), held)


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            event = json.loads(data)
            if isinstance(event, dict):
                yield event

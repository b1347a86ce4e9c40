"""An engine whose steps take exactly what a step model says, with noise: an ASGI app that speaks `/v1/completions`.

Role: the truth that a calibration has to find again. All requests that are there join the next step; prompts are read
whole. Must not know: how it is measured.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

from cluster.simulation.step_model import StepModel

BLOCKS, BLOCK_TOKENS = 2000, 16


@dataclass
class Job:
    prompt: int
    left: int
    held: int = 0
    tokens: asyncio.Queue = field(default_factory=asyncio.Queue)


@dataclass
class SteppingEngine:
    step: StepModel
    noise: float = 0.0
    request_s: float = 0.0
    draw: random.Random = field(default_factory=lambda: random.Random(1))
    jobs: list[Job] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    requests: int = 0

    async def run(self) -> None:
        """The engine's loop; cancel it to end."""
        while True:
            await self.arrived.wait()
            now = time.monotonic()
            while self.jobs:
                batch = list(self.jobs)
                now = max(now, time.monotonic() - 0.05) + self._duration(batch)
                await asyncio.sleep(max(0.0, now - time.monotonic()))
                for job in batch:
                    self._produce(job)
            self.arrived.clear()

    def _duration(self, batch: list[Job]) -> float:
        prefill = sum(job.prompt for job in batch if not job.held)
        seconds = self.step.step_s(prefill, len(batch), sum(job.held for job in batch))
        return seconds * self.draw.uniform(1 - self.noise, 1 + self.noise)

    def _produce(self, job: Job) -> None:
        job.held = (job.held or job.prompt) + 1
        job.left -= 1
        job.tokens.put_nowait(job.left)
        if not job.left:
            self.jobs.remove(job)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/v1/models":
            return await _answer(send, {"data": [{"id": "m", "max_model_len": 4096}]})
        if scope["path"] == "/metrics":
            labels = f'block_size="{BLOCK_TOKENS}",num_gpu_blocks="{BLOCKS}"'
            return await _answer(send, f"vllm:cache_config_info{{{labels}}} 1.0\n")
        body = json.loads((await receive())["body"])
        self.requests += 1
        await asyncio.sleep(self.request_s)
        job = Job(len(body["prompt"]), body["max_tokens"])
        self.jobs.append(job)
        self.arrived.set()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        left = 1
        while left:
            left = await job.tokens.get()
            await _event(send, {"choices": [{"text": " w"}]})
        usage = {"prompt_tokens": job.prompt, "completion_tokens": body["max_tokens"]}
        await _event(send, {"choices": [], "usage": usage})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def _event(send: Any, event: dict[str, Any]) -> None:
    body = b"data: " + json.dumps(event).encode() + b"\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _answer(send: Any, content: Any) -> None:
    body = (content if isinstance(content, str) else json.dumps(content)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})

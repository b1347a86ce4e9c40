"""A scripted engine for offline jobs, run inside the engine actor in place of vLLM.

Role: answer like an OpenAI server, or misbehave on purpose. Behaviour comes from words in the prompt:
`sleep=S` takes S seconds, `die` ends the whole engine process the first time it is met (a marker file remembers),
`always-die` every time, `too-long` is refused with 400, `broken` with 500. Every start and every request that begins to
run is noted in the folder named by the `journal` engine argument, so a test can count work and find pids. At most
`max_num_seqs` requests run at once, first come first served, as in a real engine. Must not know: Ray.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import uuid
from pathlib import Path
from typing import Any

from batch_jobs.engines.base import Ask, EngineLimits, EngineSettings, Reply


class ScriptedEngine:
    """Echoes prompts in upper case; one token per word."""

    def __init__(self, settings: EngineSettings) -> None:
        self._args = settings.engine_args
        self._model = settings.model
        self._journal = Path(self._args["journal"]) if "journal" in self._args else None
        self._delay_s = float(self._args.get("delay_s", 0.0))
        self._max_running = int(self._args.get("max_num_seqs", 4))
        if self._args.get("fail_to_start"):
            raise RuntimeError("scripted: the engine does not start")
        if self._journal is not None:
            (self._journal / f"start-{os.getpid()}-{uuid.uuid4().hex[:6]}").touch()

    async def start(self) -> EngineLimits:
        self._slots = asyncio.Semaphore(self._max_running)
        await asyncio.sleep(float(self._args.get("start_s", 0.0)))
        return EngineLimits(self._max_running, paths=self._args.get("paths"))

    async def ask(self, ask: Ask) -> Reply:
        text = _text(ask.body)
        async with self._slots:
            self._note(text)
            self._maybe_die(text)
            found = re.search(r"sleep=([\d.]+)", text)
            seconds = float(found.group(1)) if found else self._delay_s
            if seconds:
                await asyncio.sleep(seconds)
        if "too-long" in text:
            message = "This model's maximum context length is 10 tokens. However, your prompt has more."
            return Reply(
                400, {"error": {"message": message, "type": "BadRequestError", "param": "input_tokens", "code": 400}}
            )
        if "broken" in text:
            return Reply(500, {"error": {"message": "scripted: broken", "type": "InternalServerError", "code": 500}})
        return Reply(200, self._answer(ask, text))

    def _answer(self, ask: Ask, text: str) -> dict[str, Any]:
        words = len(text.split())
        usage = {"prompt_tokens": words, "total_tokens": words}
        named = {"id": f"req-{uuid.uuid4().hex}", "model": ask.body.get("model", self._model)}
        if ask.path == "/v1/embeddings":
            data = [{"object": "embedding", "index": 0, "embedding": [float(words), 0.5]}]
            return {**named, "object": "list", "data": data, "usage": usage}
        if ask.path == "/classify":
            data = [{"index": 0, "label": "LONG" if words > 3 else "SHORT", "probs": [0.25, 0.75], "num_classes": 2}]
            return {**named, "object": "list", "data": data, "usage": usage}
        if ask.path == "/score":
            return {**named, "object": "list", "data": [{"index": 0, "object": "score", "score": 0.5}], "usage": usage}
        usage |= {"completion_tokens": words, "total_tokens": 2 * words}
        if ask.path == "/v1/completions":
            choice: dict[str, Any] = {"index": 0, "text": text.upper(), "finish_reason": "stop"}
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": text.upper()}, "finish_reason": "stop"}
        return {**named, "choices": [choice], "usage": usage}

    def _note(self, text: str) -> None:
        if self._journal is not None:
            with (self._journal / f"calls-{os.getpid()}").open("a") as calls:
                calls.write(json.dumps(text) + "\n")

    def _maybe_die(self, text: str) -> None:
        if "always-die" in text:
            os._exit(7)
        if self._journal is not None and "die" in text.split():
            marker = self._journal / "died"
            if not marker.exists():
                marker.touch()
                os._exit(7)


def _text(body: dict[str, Any]) -> str:
    if "messages" in body:
        return str(body["messages"][-1]["content"])
    return str(body.get("prompt", body.get("input", body.get("text_1", ""))))

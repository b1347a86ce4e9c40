"""A scripted engine for offline jobs, run inside the engine actor in place of vLLM.

Role: answer at once, or misbehave on purpose. Behaviour comes from words in the prompt:
`sleep=S` takes S seconds, `die` ends the whole engine process the first time it is met (a marker file remembers),
`always-die` every time, `too-long` is refused. Every start and every call is noted in the folder named by the
`journal` engine argument, so a test can count work and find pids. Must not know: Ray.
"""

from __future__ import annotations

import asyncio
import os
import re
import uuid
from pathlib import Path

from batch_jobs.engines.base import EngineSettings
from batch_jobs.errors import RowError, RowErrorKind
from batch_jobs.input.rows import Prompt
from batch_jobs.output.parts import Result


class ScriptedEngine:
    """Echoes prompts in upper case; one token per word."""

    def __init__(self, settings: EngineSettings) -> None:
        self._journal = Path(settings.engine_args["journal"])
        self._delay_s = float(settings.engine_args.get("delay_s", 0.0))
        if settings.engine_args.get("fail_to_start"):
            raise RuntimeError("scripted: the engine does not start")
        (self._journal / f"start-{os.getpid()}-{uuid.uuid4().hex[:6]}").touch()

    async def generate(self, row_id: str, prompt: Prompt) -> Result:
        text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
        with (self._journal / f"calls-{os.getpid()}").open("a") as calls:
            calls.write(f"{row_id}\n")
        if "too-long" in text:
            raise RowError(RowErrorKind.PROMPT_TOO_LONG, "scripted: the prompt is too long")
        self._maybe_die(text)
        found = re.search(r"sleep=([\d.]+)", text)
        await asyncio.sleep(float(found.group(1)) if found else self._delay_s)
        words = len(text.split())
        return Result(text.upper(), "stop", prompt_tokens=words, output_tokens=words)

    def _maybe_die(self, text: str) -> None:
        if "always-die" in text:
            os._exit(7)
        marker = self._journal / "died"
        if "die" in text.split() and not marker.exists():
            marker.touch()
            os._exit(7)

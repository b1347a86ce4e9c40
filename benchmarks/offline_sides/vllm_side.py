"""vLLM's AsyncLLM driven by hand: every prompt submitted at once, the way its own examples and benchmarks do it.

A process that reads one JSON object a line on stdin, {"prompts": FILE, "max_tokens": N}, and answers with one on
stdout. The engine stays up between runs and forgets its prefix cache before each. Run by benchmarks/offline.py, which
stops it (SIGSTOP) while another side runs, as an idle engine must not take a core from that:
`python -m benchmarks.offline_sides.vllm_side ENGINE_ARGS_JSON`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM


async def serve(engine: AsyncLLM) -> None:
    say({"ready": True})
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        await engine.reset_prefix_cache()
        say(await run(engine, read(order["prompts"]), order["max_tokens"]))


async def run(engine: AsyncLLM, prompts: list[str], max_tokens: int) -> dict[str, Any]:
    params = SamplingParams(
        max_tokens=max_tokens, temperature=0, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
    )

    async def one(index: int, prompt: str) -> tuple[int, int, int]:
        final = None
        async for output in engine.generate(prompt, params, f"{time.monotonic_ns()}-{index}"):
            final = output
        assert final is not None
        return len(final.prompt_token_ids or ()), final.num_cached_tokens or 0, len(final.outputs[0].token_ids)

    began_s = time.perf_counter()
    counts = await asyncio.gather(*(one(index, prompt) for index, prompt in enumerate(prompts)))
    seconds = time.perf_counter() - began_s
    prompt, cached, output = (sum(column) for column in zip(*counts, strict=True))
    return {"seconds": seconds, "prompt_tokens": prompt, "cached_tokens": cached, "output_tokens": output}


def read(path: str) -> list[str]:
    prompts: list[str] = json.loads(Path(path).read_text())
    return prompts


def say(data: dict[str, Any]) -> None:
    print("SIDE " + json.dumps(data), flush=True)


if __name__ == "__main__":
    built = AsyncLLM.from_engine_args(AsyncEngineArgs(**json.loads(sys.argv[1])))
    try:
        asyncio.run(serve(built))
    finally:
        built.shutdown()

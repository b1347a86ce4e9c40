"""Role: read an engine's load from its Prometheus endpoint. Owns: EngineLoad, and the reading of the text format.

Must not know: which names an engine uses; its adapter passes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import aiohttp

READ_TIMEOUT_S = 10.0


class LoadUnavailableError(RuntimeError):
    """The engine did not tell its load: it is down, hangs, or serves no metrics."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine is doing at one moment, summed over its ranks."""

    running: int
    waiting: int
    kv_usage: float
    """Fraction of the KV cache that running requests hold, 0..1; of several ranks, the fullest one's."""
    prompt_tokens_total: int
    generation_tokens_total: int


@dataclass(frozen=True, slots=True)
class MetricNames:
    """Sample names of one engine, as they stand in its text. `waiting` may be the sum of several queues."""

    running: str
    waiting: tuple[str, ...]
    kv_usage: str
    prompt_tokens: str
    generation_tokens: str


async def fetch_load(session: aiohttp.ClientSession, base_url: str, api_key: str, names: MetricNames) -> EngineLoad:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=READ_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {api_key}"}
    try:
        async with session.get(f"{base_url}/metrics", headers=headers, timeout=timeout) as response:
            if response.status != 200:
                raise LoadUnavailableError(f"{base_url}/metrics answered {response.status}")
            text = await response.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise LoadUnavailableError(f"{base_url}/metrics: {type(error).__name__}: {error}") from error
    return parse_load(text, names)


def parse_load(text: str, names: MetricNames) -> EngineLoad:
    """A gauge that is absent reads as zero: engines export many of them only after the first request."""
    running, kv_usage = [], [0.0]
    waiting = prompt = generation = 0.0
    for name, value in _samples(text, names):
        if name == names.running:
            running.append(value)
        elif name in names.waiting:
            waiting += value
        elif name == names.kv_usage:
            kv_usage.append(value)
        elif name == names.prompt_tokens:
            prompt += value
        else:
            generation += value
    if not running:
        raise LoadUnavailableError(f"no sample {names.running} among the engine's metrics")
    usage = min(1.0, max(kv_usage))
    return EngineLoad(int(sum(running)), int(waiting), usage, int(prompt), int(generation))


def _samples(text: str, names: MetricNames) -> Iterator[tuple[str, float]]:
    from prometheus_client.parser import text_string_to_metric_families

    wanted = {names.running, *names.waiting, names.kv_usage, names.prompt_tokens, names.generation_tokens}
    # An engine exports hundreds of histogram lines and this runs several times a second: parse only what is asked for.
    lines = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] in wanted]
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            if math.isfinite(sample.value):
                yield sample.name, sample.value

"""The load on a real engine, the same for every side of every case.

Owns: how many requests, of which shape, in which order of sides. Must not know: what the sides are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.gateway_sides.cases import rotated
from benchmarks.load import Target, measure
from benchmarks.report import Report

SATURATION, CALM = 32, 8
REQUESTS = {SATURATION: 64, CALM: 32}
"""Concurrency -> requests a run."""
TOKENS = 32
DESCRIBED: dict[str, Any] = {"requests": {str(key): value for key, value in REQUESTS.items()}, "tokens": TOKENS}


async def measure_pairs(
    report: Report, case: str, targets: Mapping[str, Target], model: str, pairs: int, say: Callable[[str], None]
) -> None:
    """Each side alone, one after the other, in an order that changes with every pair."""
    await warm_up(targets, model)
    for pair in range(pairs):
        for concurrency, requests in REQUESTS.items():
            for side in rotated(list(targets), pair):
                prompts = prompts_for(requests, f"{pair}-{concurrency}-{side}")
                figures = await measure(targets[side], model, prompts, concurrency, TOKENS)
                report.add(pair, side, case=case, concurrency=concurrency, **figures)
                say(f"pair {pair} c={concurrency} {side}: {figures}")


async def warm_up(targets: Mapping[str, Target], model: str) -> None:
    """Connections, imports and caches of every side."""
    for side, target in targets.items():
        await measure(target, model, prompts_for(SATURATION, f"warm-up {side}"), SATURATION, TOKENS)


def prompts_for(count: int, salt: str) -> list[str]:
    """Prompts of one length that share no prefix between runs, so that no side profits from another's cache."""
    return [f"{salt} {number}: tell me something worth knowing about the number {number}." for number in range(count)]

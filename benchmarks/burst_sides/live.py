"""The burst on a real engine: the same requests at the same moments to a cluster for each side.

First it is measured what all replicas together can do; the base load is 8 % of that, the burst ten times as much, which
one replica cannot serve. Replicas are counted once a second by what Serve says of them, in whatever state.

Owns: clusters, load and figures of the live case. Must not know: the simulation.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import typer

from benchmarks.burst_sides.metrics import SLO_TTFT_S, WAIT_TARGET_S
from benchmarks.gateway_sides.cases import rotated
from benchmarks.load import Target
from benchmarks.load import measure as closed_loop
from benchmarks.report import Report, percentile
from cluster.config import TribesConfig
from cluster.local import deploy
from cluster.local.isolate import isolated
from cluster.local.up import down, up
from cluster.vocabulary import RequestClass

OURS, SERVE, PEAK = "tribes", "serve", "peak"
REPLICAS = 2
"""Two cores: a third replica would add nothing."""
BASE_SHARE, FACTOR = 0.08, 10
BEFORE_S, BURST_S, AFTER_S = 180.0, 60.0, 180.0
TOKENS, IDLE_TIMEOUT_S = 32, 60.0
CALIBRATION_REQUESTS, CALIBRATION_AT_ONCE = 64, 32
REQUEST_TIMEOUT_S = 300.0
COUNT_S, STOP_GRACE_S = 1.0, 10.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: when it was sent, and how long its first token took; None if it failed."""

    at_s: float
    ttft_s: float | None


def measure(report: Report, config: TribesConfig, pairs: int, say: Callable[[str], None]) -> None:
    """All pairs; what the engines can do is measured once, on the first cluster that has all of them."""
    configs = {side: side_config(config, side) for side in (PEAK, OURS, SERVE)}
    rate = 0.0
    for pair in range(pairs):
        # The one with all replicas comes first in the first pair: it is calibrated on.
        for side in rotated(list(configs), pair):
            with _cluster(configs[side], side, say) as (running, target):
                (name,) = running.deployments
                model = running.deployments[name].model
                if not rate:
                    rate = BASE_SHARE * asyncio.run(_capacity(target, model))
                    report.config["live"] = _described(configs, rate)
                moments = arrivals(rate, pair)
                asked, replica_seconds = asyncio.run(_run(running, name, target, model, moments, f"{pair}-{side}"))
            figures = {**figures_of(asked), "replica_seconds": replica_seconds}
            report.add(pair, side, case="live", **figures)
            say(f"pair {pair} {side}: {figures}")


def side_config(config: TribesConfig, side: str) -> TribesConfig:
    """The first semi-online vLLM deployment alone, with the side's number of replicas."""
    found = [
        (name, item)
        for name, item in config.serving().items()
        if item.own_class is RequestClass.SEMI_ONLINE and item.engine.kind == "vllm"
    ]
    if not found:
        raise typer.BadParameter("needs a vLLM deployment whose first class is semi_online", param_hint="--config")
    name, item = found[0]
    plain = config.model_dump(mode="json")
    replicas = {
        "min": REPLICAS if side == PEAK else 1,
        "max": REPLICAS,
        "wait_target_s": WAIT_TARGET_S,
        "idle_timeout_s": IDLE_TIMEOUT_S,
    }
    plain["deployments"] = {name: {**plain["deployments"][name], "serves": ["semi_online"], "replicas": replicas}}
    plain["models"] = {item.model: plain["models"][item.model]}
    return TribesConfig.model_validate(plain)


def arrivals(rate: float, seed: int) -> list[float]:
    """Moments of a Poisson process of `rate` a second, ten times that in the burst."""
    rng, now_s = random.Random(seed), 0.0
    moments: list[float] = []
    while True:
        in_burst = BEFORE_S <= now_s < BEFORE_S + BURST_S
        now_s += rng.expovariate(rate * FACTOR if in_burst else rate)
        if now_s >= BEFORE_S + BURST_S + AFTER_S:
            return moments
        moments.append(now_s)


def figures_of(asked: list[Asked]) -> dict[str, Any]:
    ttft_s = [one.ttft_s for one in asked if one.ttft_s is not None]
    in_burst = [one for one in asked if one.at_s >= BEFORE_S]
    late = [one.at_s - BEFORE_S for one in in_burst if one.ttft_s is None or one.ttft_s > WAIT_TARGET_S]
    return {
        "requests": len(asked),
        "failed": len(asked) - len(ttft_s),
        "attainment": sum(one <= SLO_TTFT_S for one in ttft_s) / len(asked),
        "burst_to_slo_s": max(late, default=0.0),
        "ttft_p50_s": percentile(ttft_s, 50),
        "ttft_p99_s": percentile(ttft_s, 99),
    }


def _described(configs: dict[str, TribesConfig], rate: float) -> dict[str, Any]:
    from benchmarks.burst_sides.serve_live import SETTINGS  # Ray Serve is not needed for the simulation's sake

    return {
        "base_requests_per_s": rate,
        "seconds": {"before": BEFORE_S, "burst": BURST_S, "after": AFTER_S},
        "tokens": TOKENS,
        "deployments": {
            side: {name: item.model_dump(mode="json") for name, item in config.deployments.items()}
            for side, config in configs.items()
        },
        "serve_rule": asdict(SETTINGS),
    }


@contextmanager
def _cluster(config: TribesConfig, side: str, say: Callable[[str], None]) -> Iterator[tuple[TribesConfig, Target]]:
    with tempfile.TemporaryDirectory(prefix="tribes-burst-") as folder, _decided_by(side):
        running = isolated(config, Path(folder))
        try:
            started = up(running, say)
            yield running, Target(started.api_url.removesuffix("/v1"), started.api_key)
        finally:
            down(running, STOP_GRACE_S, say)


def _decided_by(side: str) -> Any:
    """Ray Serve's rule comes with an application of its own, which is this project's but for the policy."""
    if side != SERVE:
        return nullcontext()
    from benchmarks.burst_sides.serve_live import IMPORT_PATH

    original = deploy.serve_config

    def serve_config(config: TribesConfig) -> dict[str, Any]:
        plain = original(config)
        plain["applications"][0]["import_path"] = IMPORT_PATH
        return plain

    return mock.patch.object(deploy, "serve_config", serve_config)


async def _capacity(target: Target, model: str) -> float:
    """Requests a second that all replicas together serve."""
    for turn in ("warm-up", "measured"):
        prompts = [_prompt(turn, number) for number in range(CALIBRATION_REQUESTS)]
        figures = await closed_loop(target, model, prompts, CALIBRATION_AT_ONCE, TOKENS)
    return figures["tokens_per_s"] / TOKENS


async def _run(
    config: TribesConfig, name: str, target: Target, model: str, moments: list[float], salt: str
) -> tuple[list[Asked], float]:
    """Every request, and the replica-seconds until the last moment of the load."""
    counting = asyncio.create_task(_replica_seconds(config, name, BEFORE_S + BURST_S + AFTER_S))
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {target.api_key}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector, timeout=timeout) as session:
        began_s, tasks = time.perf_counter(), []
        for number, at_s in enumerate(moments):
            await asyncio.sleep(max(0.0, began_s + at_s - time.perf_counter()))
            tasks.append(asyncio.create_task(_ask(session, target, model, _prompt(salt, number), at_s)))
        asked = await asyncio.gather(*tasks)
    return asked, await counting


async def _ask(session: aiohttp.ClientSession, target: Target, model: str, prompt: str, at_s: float) -> Asked:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "service_tier": "flex",
    }
    started_s, first_s = time.perf_counter(), None
    try:
        async with session.post(f"{target.base_url}/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if first_s is None and b'"content":"' in line and b'"content":""' not in line:
                    first_s = time.perf_counter() - started_s
    except (aiohttp.ClientError, TimeoutError):
        return Asked(at_s, None)
    return Asked(at_s, first_s)


async def _replica_seconds(config: TribesConfig, name: str, seconds: float) -> float:
    total, last_s = 0.0, time.perf_counter()
    ends_s = last_s + seconds
    while last_s < ends_s:
        await asyncio.sleep(COUNT_S)
        details = await asyncio.to_thread(deploy.app_details, config)
        now_s = time.perf_counter()
        total += len(details["deployments"][name]["replicas"]) * (min(now_s, ends_s) - last_s)
        last_s = now_s
    return total


def _prompt(salt: str, number: int) -> str:
    return f"{salt} {number}: tell me something worth knowing about the number {number}."

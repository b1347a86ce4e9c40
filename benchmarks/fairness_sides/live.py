"""The live part: what quiet tenants notice of a noisy one, on a real engine behind the whole stack as a user starts it.

Fifteen quiet tenants ask at random times for short answers, together 40 % of what the engine can do (measured first).
The sixteenth asks for long ones and offers twenty times its share, a sixteenth of the engine. Every tenant has the same
policy: weight 1, `max_concurrent` its share of the slots, a short queue. Without such a limit any policy that leaves no
slot idle lets the noise into all that are free, and a quiet request waits for one. In each pair three runs with
the same arrivals of the quiet ones: `alone`; `noisy_tribes`, with the noise; `noisy_fifo`, with the noise, but all
requests under one tenant without limits, so that the order of arrival rules.

The figure is the time to first token of the quiet tenants' requests. One that was refused or failed counts as the
longest that a request may wait. The first seconds of a run do not count for it.

Owns: the runs. Must not know: the policy.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.fairness_sides.live_load import NOISY, QUIET_PREFIX, Answer, Load, Planned, offer, plan
from benchmarks.load import Target, measure
from benchmarks.report import Report, percentile
from cluster.config import TribesConfig
from cluster.local.auth import enable_token_auth
from cluster.local.isolate import isolated
from cluster.local.up import down, up
from cluster.state import Store
from cluster.vocabulary import RequestClass

QUIET = tuple(f"{QUIET_PREFIX}{number:02}" for number in range(15))
EVERYONE = "everyone"
QUIET_LOAD, TIMES_ITS_SHARE = 0.40, 20.0
QUIET_TOKENS, NOISY_TOKENS = 4, 128
MAX_QUEUED = 32
RUN_S, QUICK_RUN_S, SETTLE_S = 75.0, 40.0, 8.0
IDLE_TIMEOUT_S = 90.0
ALONE, OURS, FIFO = "alone", "noisy_tribes", "noisy_fifo"
INPUT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0


def live_config(config: TribesConfig) -> TribesConfig:
    """`config` with the tenants of this benchmark, all of one policy but the one under which FIFO runs."""
    slots = online_slots(config)
    limits = {"max_concurrent": math.ceil(slots / (len(QUIET) + 1)), "max_queued": MAX_QUEUED}
    plain = config.model_dump(mode="json")
    tenants = {tenant: {"weight": 1, "limits": limits} for tenant in (*QUIET, NOISY)}
    plain["tenants"] = {"default": {}, EVERYONE: {"weight": 1, "operator": True}, **tenants}
    return TribesConfig.model_validate(plain)


def online_slots(config: TribesConfig) -> int:
    """Slots of the first deployment whose own class is online."""
    found = [d for d in config.serving().values() if d.own_class is RequestClass.ONLINE]
    if not found:
        raise ValueError("the live part needs a deployment that serves [online]; name a configuration with --config")
    return found[0].max_running * found[0].replicas.min


class Live:
    """All runs on one cluster."""

    def __init__(self, config: TribesConfig, run_s: float, say: Callable[[str], None]) -> None:
        self._config = config
        self._run_s = run_s
        self._say = say
        online = config.scheduling.classes[RequestClass.ONLINE]
        self._missed_s = online.max_wait_s
        name, deployment = next((n, d) for n, d in config.serving().items() if d.own_class is RequestClass.ONLINE)
        self._model = deployment.model
        self._slots = online_slots(config)
        self._described = {
            "engine": {"deployment": name, **deployment.model_dump(mode="json")},
            "tenants": {name: tenant.model_dump(mode="json") for name, tenant in config.tenants.items()},
            "quiet_load": QUIET_LOAD, "noise_times_its_share": TIMES_ITS_SHARE,
            "quiet_tokens": QUIET_TOKENS, "noisy_tokens": NOISY_TOKENS, "run_s": run_s, "settle_s": SETTLE_S,
            "missed_counts_as_s": self._missed_s,
        }  # fmt: skip

    def described(self) -> dict[str, Any]:
        """The exact configuration."""
        return self._described

    def run(self, report: Report, pairs: int) -> None:
        """Start the stack, run the pairs, add runs, ratios and the bar; nothing is left running."""
        enable_token_auth()
        with tempfile.TemporaryDirectory() as folder:
            config = isolated(self._config, Path(folder))
            try:
                started = up(config, self._say)
                store = Store(config.state.url)
                keys = {tenant: store.create_key(tenant)[1] for tenant in (*QUIET, NOISY, EVERYONE)}
                store.close()
                runs = Runs(started.api_url.removesuffix("/v1"), keys, self._model, self._slots, self._run_s)
                asyncio.run(self._pairs(report, runs, pairs))
            finally:
                down(config, 10.0, self._say)
        compare(report)

    async def _pairs(self, report: Report, runs: Runs, pairs: int) -> None:
        await runs.calibrate()
        self._described["capacity_requests_per_s"] = runs.capacity_per_s
        self._described["loads"] = {name: f"{load.rate_per_s:.2f} requests/s" for name, load in runs.loads().items()}
        self._say(f"capacity {runs.capacity_per_s:.2f} requests/s; {self._described['loads']}")
        pooled: dict[str, list[float]] = {}
        for pair in range(pairs):
            sides = [ALONE, OURS, FIFO]
            # The order rotates, so that a drift of the machine favours no side.
            for side in sides[pair % 3 :] + sides[: pair % 3]:
                answers = await runs.one(pair, side)
                ttfts = quiet_ttfts_s(answers, self._missed_s)
                pooled.setdefault(side, []).extend(ttfts)
                figures = live_figures(answers, ttfts)
                report.add(pair, side, scenario="live", **figures)
                self._say(f"live pair {pair} {side}: {figures}")
                await runs.wait_idle()
        for side, ttfts in pooled.items():
            report.add(0, side, scenario="live_pooled", quiet_ttft_p99_s=percentile(ttfts, 99), requests=len(ttfts))


class Runs:
    """Runs against one gateway."""

    def __init__(self, base_url: str, keys: dict[str, str], model: str, slots: int, run_s: float) -> None:
        self._base_url = base_url
        self._keys = keys
        self._model = model
        self._slots = slots
        self._run_s = run_s
        self.capacity_per_s = 0.0
        self._prompt_tokens = 0

    async def calibrate(self) -> None:
        """Warm up, then measure what the engine does at most: quiet requests, as many at once as there are slots."""
        target = Target(self._base_url, self._keys[EVERYONE])
        for salt, rounds in (("warm-up", 1), ("calibration", 6)):
            prompts = [one.prompt for one in _prompts(self._slots * rounds, salt)]
            figures = await measure(target, self._model, prompts, self._slots, QUIET_TOKENS)
        self.capacity_per_s = figures["tokens_per_s"] / QUIET_TOKENS
        self._prompt_tokens = await self._size_of_a_prompt()

    def loads(self) -> dict[str, Load]:
        """What the quiet tenants and the noisy one offer."""
        quiet_cost = INPUT_WEIGHT * self._prompt_tokens + OUTPUT_WEIGHT * QUIET_TOKENS
        noisy_cost = INPUT_WEIGHT * self._prompt_tokens + OUTPUT_WEIGHT * NOISY_TOKENS
        share = self.capacity_per_s * quiet_cost / (len(QUIET) + 1)
        return {
            "quiet": Load(QUIET, QUIET_LOAD * self.capacity_per_s, QUIET_TOKENS),
            "noisy": Load((NOISY,), TIMES_ITS_SHARE * share / noisy_cost, NOISY_TOKENS),
        }

    async def one(self, pair: int, side: str) -> list[Answer]:
        """One run of a pair."""
        loads = self.loads()
        offered = [loads["quiet"]] if side == ALONE else [loads["quiet"], loads["noisy"]]
        planned = plan(offered, SETTLE_S + self._run_s, seed=str(pair), salt=f"{pair} {side}")
        # Under FIFO the same people ask, but the queue sees one tenant only.
        keys = dict.fromkeys(self._keys, self._keys[EVERYONE]) if side == FIFO else self._keys
        return await offer(self._base_url, keys, self._model, planned)

    async def wait_idle(self) -> None:
        """Until nothing waits or runs: what one run leaves behind must not burden the next."""
        headers = {"Authorization": f"Bearer {self._keys[EVERYONE]}"}
        deadline = time.monotonic() + IDLE_TIMEOUT_S
        async with aiohttp.ClientSession(headers=headers) as session:
            while time.monotonic() < deadline:
                async with session.get(f"{self._base_url}/tribes/status") as answer:
                    answer.raise_for_status()
                    status = next(m for m in (await answer.json())["models"] if m["model"] == self._model)
                if is_idle(status):
                    return
                await asyncio.sleep(0.5)
        raise TimeoutError(f"requests still waited or ran {IDLE_TIMEOUT_S:.0f} s after a run: {status}")

    async def _size_of_a_prompt(self) -> int:
        """Input tokens of one request, as the engine counts them."""
        headers = {"Authorization": f"Bearer {self._keys[EVERYONE]}"}
        (one,) = _prompts(1, "size")
        body = {"model": self._model, "messages": [{"role": "user", "content": one.prompt}], "max_tokens": 1}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(f"{self._base_url}/v1/chat/completions", json=body) as answer,
        ):
            answer.raise_for_status()
            return int((await answer.json())["usage"]["prompt_tokens"])


def is_idle(status: dict[str, Any]) -> bool:
    """Whether a model's status shows neither waiting requests nor running ones."""
    waiting = sum(c["waiting"] for c in status["classes"].values())
    return not waiting and not sum(r["running"] for r in status["replicas"])


def counted(answers: list[Answer]) -> list[Answer]:
    """Those of the quiet tenants, planned after the run had settled."""
    return [answer for answer in answers if answer.planned.quiet and answer.planned.at_s >= SETTLE_S]


def quiet_ttfts_s(answers: list[Answer], missed_s: float) -> list[float]:
    """Of the requests that count; a missed one counts as `missed_s`."""
    return [missed_s if answer.ttft_s is None else answer.ttft_s for answer in counted(answers)]


def live_figures(answers: list[Answer], ttfts: list[float]) -> dict[str, Any]:
    """Figures of one run."""
    noise = [answer for answer in answers if not answer.planned.quiet]
    return {
        "quiet_ttft_p50_s": percentile(ttfts, 50), "quiet_ttft_p95_s": percentile(ttfts, 95),
        "quiet_ttft_p99_s": percentile(ttfts, 99), "quiet_requests": len(ttfts),
        "quiet_missed": sum(1 for a in counted(answers) if a.ttft_s is None),
        "noisy_requests": len(noise), "noisy_served": sum(1 for a in noise if a.ttft_s is not None),
        "noisy_refused": sum(1 for a in noise if a.status in (429, 503)),
    }  # fmt: skip


def compare(report: Report) -> None:
    """Ratios of the live runs: p99 and p50 of the quiet tenants, with noise over alone."""
    for percent in (99, 50):
        metric, name = f"quiet_ttft_p{percent}_s", f"quiet_p{percent}_ttft_live"
        report.compare(name, metric, OURS, ALONE, lambda a, b: a / b, scenario="live")
        report.compare(f"{name}_fifo", metric, FIFO, ALONE, lambda a, b: a / b, scenario="live")
    report.compare(
        "quiet_p99_ttft_live_pooled", "quiet_ttft_p99_s", OURS, ALONE, lambda a, b: a / b, scenario="live_pooled"
    )
    report.bar("quiet_p99_ttft_live", "<= 1.10", lambda got: got <= 1.10)


def _prompts(count: int, salt: str) -> list[Planned]:
    """As many requests as a quiet tenant would send."""
    planned: list[Planned] = []
    while len(planned) < count:
        planned += plan([Load(QUIET[:1], 1.0, QUIET_TOKENS)], float(count), salt, f"{salt} {len(planned)}")
    return planned[:count]

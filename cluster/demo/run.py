"""The demo from start to end: the order of its steps, and the file it leaves.

Owns: that order, and a bound on every wait. Must not know: how a step does its work, or how results look.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from cluster.cli.api import Answer, api_url, fetch_status, timeouts
from cluster.cli.screen import Progress
from cluster.config import TribesConfig
from cluster.demo.bill import all_costs, burst_shares, wait_billed
from cluster.demo.burst import REQUESTS_PER_TENANT, run_burst
from cluster.demo.machine import machine, versions
from cluster.demo.offline import run_offline
from cluster.demo.online import converse
from cluster.demo.results import RequestResult, Results, Sample, scale_up_s, summarise, summarise_offline
from cluster.demo.targets import Targets, choose, keys_for, tenants, weights
from cluster.demo.view import print_results
from cluster.local.up import down, up
from cluster.scheduling.service import ServiceWeights

if TYPE_CHECKING:
    from rich.console import Console

JOB_TIMEOUT_S = 1200.0
BURST_TIMEOUT_S = 600.0
IDLE_TIMEOUT_S = 120.0
"""Longest silence of a conversation's stream."""
STOP_GRACE_S = 30.0


def run_demo(config: TribesConfig, output: Path, screen: Console, *, stop_after: bool = False) -> Results:
    """Every step, the tables, and `output`. The cluster stays up unless `stop_after`."""
    demo = Demo(config, screen)
    try:
        results = demo.run()
    finally:
        if stop_after:
            with Progress(screen) as progress:
                down(config, STOP_GRACE_S, progress)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results.as_json(), indent=1) + "\n", encoding="utf-8")
    print_results(screen, results)
    screen.print(f"machine-readable: {output}", soft_wrap=True)
    if not stop_after:
        given = f" -c {config.source_path}" if config.source_path else ""
        screen.print(
            f"the cluster stays up: tribes chat{given} | tribes status{given} | tribes down{given}", soft_wrap=True
        )
    return results


class Demo:
    """One run; used once."""

    def __init__(self, config: TribesConfig, screen: Console) -> None:
        self._config = config
        self._screen = screen
        self._targets: Targets = choose(config)
        self._began_s = time.time()
        self._folder = config.paths.data / "demo" / time.strftime("%Y%m%dT%H%M%S", time.gmtime(self._began_s))
        started_at = datetime.fromtimestamp(self._began_s, UTC).isoformat(timespec="seconds")
        self._results = Results(versions(), machine(), str(config.source_path), started_at)

    def run(self) -> Results:
        with Progress(self._screen) as progress:
            key = self._start(progress)
            self._offline(progress)
            self._online(progress, key)
            self._burst(progress, key)
            self._add_up(progress)
        self._results.seconds["total"] = time.time() - self._began_s
        return self._results

    @contextmanager
    def _step(self, progress: Progress, name: str, title: str) -> Iterator[None]:
        began_s = time.monotonic()
        progress(f"== {title}")
        yield
        self._results.seconds[name] = time.monotonic() - began_s

    def _start(self, progress: Progress) -> str:
        with self._step(progress, "up", "1 of 4: the cluster"):
            started = up(self._config, progress)
        self._results.reused = started.reused
        progress(f"API {api_url(self._config)}/v1, dashboard {started.dashboard_url}")
        return started.api_key

    def _offline(self, progress: Progress) -> None:
        model = self._targets.offline_model
        with self._step(progress, "offline", f"2 of 4: offline: a Ray job over real text ({model})"):
            done = run_offline(self._config, model, self._folder, progress, JOB_TIMEOUT_S)
        self._results.offline = {"job_id": done.job_id, **done.report}
        self._results.answers["offline"] = done.sample

    def _online(self, progress: Progress, key: str) -> None:
        model = self._targets.online_model

        def on_turn(number: int, question: str, answer: Answer) -> None:
            progress(f"  turn {number}: {question}")
            progress(f"    {' '.join(answer.text.split())}")

        async def talk() -> list[RequestResult]:
            async with self._client(IDLE_TIMEOUT_S) as client:
                return await converse(client, key, model, on_turn)

        with self._step(progress, "chat", f"3 of 4: online: a conversation by streaming ({model})"):
            progress("  first turn: waiting for the first token")
            self._results.chat = asyncio.run(talk())
        self._results.chat_model = model
        self._keep_answer("online", self._results.chat)

    def _burst(self, progress: Progress, key: str) -> None:
        names, targets = tenants(self._config), self._targets
        total = REQUESTS_PER_TENANT * len(names)
        title = f"4 of 4: semi-online: {total} requests of {', '.join(names)} at once ({targets.burst_model})"
        with self._step(progress, "burst", title), keys_for(self._config, names) as keys:

            async def send() -> tuple[list[RequestResult], list[Sample], float]:
                async with self._client(BURST_TIMEOUT_S) as client:
                    return await run_burst(
                        client,
                        keys,
                        key,
                        targets.burst_model,
                        targets.burst,
                        _reporter(progress, total),
                        BURST_TIMEOUT_S,
                    )

            self._results.burst, self._results.samples, self._results.burst_wall_s = asyncio.run(send())
            status = fetch_status(api_url(self._config), key)
        self._results.scale_up_s = scale_up_s(self._results.samples)
        self._results.cold_start_s = {
            report["replica_id"]: report["cold_start_s"]
            for model in status.get("models", [])
            for report in model.get("replicas", [])
            if report.get("cold_start_s") is not None
        }
        self._keep_answer("semi_online", self._results.burst)

    def _add_up(self, progress: Progress) -> None:
        results, config = self._results, self._config
        progress("adding up")
        served = sum(request.answer is not None for request in [*results.chat, *results.burst])
        if not wait_billed(config, self._began_s, served):
            progress("the ledger lacks some requests: the costs below are not complete")
        results.costs = all_costs(config, self._began_s, results.offline)
        fairness = ServiceWeights(config.scheduling.input_weight, config.scheduling.output_weight)
        shares = weights(config, tenants(config))
        results.tenants = burst_shares(results.burst, fairness, shares, results.costs)
        talked_s = sum(turn.answer.total_s for turn in results.chat if turn.answer)
        results.classes = [
            summarise("online", ", ".join(self._targets.online), results.chat, talked_s),
            summarise("semi_online", ", ".join(self._targets.burst), results.burst, results.burst_wall_s),
            summarise_offline(results.offline),
        ]

    def _client(self, idle_s: float) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=api_url(self._config), timeout=timeouts(idle_s))

    def _keep_answer(self, request_class: str, requests: list[RequestResult]) -> None:
        for request in requests:
            if request.answer is not None and request.answer.text.strip():
                self._results.answers[request_class] = {"prompt": request.prompt, "answer": request.answer.text}
                return


def _reporter(progress: Progress, total: int) -> Callable[[Sample, int], None]:
    """Says how the burst goes: a new line when replicas change, otherwise the current line's counters."""
    last: tuple[int, int, int] | None = None

    def report(sample: Sample, done: int) -> None:
        nonlocal last
        replicas = f"replicas {sample.wanted} wanted, {sample.starting} starting, {sample.ready} ready"
        line = f"  {done} of {total} done, {sample.running} running, {sample.waiting} waiting; {replicas}"
        now = (sample.wanted, sample.starting, sample.ready)
        (progress if now != last else progress.update)(line)
        last = now

    return report

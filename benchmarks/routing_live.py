"""Do conversations find their caches again on real engines, and what does that do for the time to the first token?

Two SGLang replicas of this project's cluster, with caches too small for all conversations twice. Doors to these same
two processes: ours (Serve's endpoint; keys, queue, leases and ledger on), and SGLang's router with its cache_aware rule
as it comes and with thresholds for this load, with round robin, and with random choice. Multi-turn chats on MT-bench's
questions whose users' rates follow Zipf's law (routing_live_sides/chats.py), sent in an open loop with the answers as
they came. No client names a session. Before each load the engines' caches are emptied, and the router is a new one; our
queue meets conversations that it has never seen. Figures in routing_live_sides/figures.py.

`python -m benchmarks.routing_live --json FILE [--quick] [--rounds N] [--side NAME ...] [--data FOLDER]`
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.gateway_sides.cases import rotated
from benchmarks.gateway_sides.environments import SGLANG_ROUTER, ensure
from benchmarks.load import Target, measure
from benchmarks.relay import direct_targets
from benchmarks.report import Report
from benchmarks.routing_live_sides import chats, doors
from benchmarks.routing_live_sides.figures import ChatTokens, figures
from benchmarks.routing_live_sides.load import READING_S, Outcome, chatted
from benchmarks.routing_sides.workload import CHAT_FILE
from cluster.config import TribesConfig, load_config
from cluster.local.auth import enable_token_auth
from cluster.local.isolate import isolated
from cluster.local.up import down, up
from cluster.models import prepare_model
from cluster.vocabulary import RequestClass

OURS = "tribes"
SIDES = (OURS, *doors.ROUTERS)
ROUNDS, QUICK_ROUNDS = 5, 3
SECONDS, QUICK_SECONDS = 50.0, 30.0
REPLICAS, CACHE_TOKENS = 2, 4000
"""Room for about half of what is said in a load."""
USERS, REQUESTS_PER_S = 12, 0.9
WARM_UP_REQUESTS, WARM_UP_TOKENS = 12, 8
STOP_GRACE_S = 10.0
console = Console(stderr=True)


def main(
    json_path: Annotated[Path, typer.Option("--json", help="Where the result goes.")],
    quick: Annotated[bool, typer.Option(help="Three rounds of shorter loads.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help=f"{ROUNDS} when not given.")] = None,
    side: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(SIDES)}.")] = None,
    data: Annotated[Path, typer.Option(help=f"Folder that has {CHAT_FILE}.")] = Path("../shared/data"),
    config_path: Annotated[Path, typer.Option("--config", help="Of the real engine.")] = Path("configs/local.yaml"),
) -> None:
    if not (data / CHAT_FILE).is_file():
        raise typer.BadParameter(f"no {CHAT_FILE} in {data}; name the folder that has it", param_hint="--data")
    if wrong := set(side or ()) - set(SIDES):
        raise typer.BadParameter(f"no side {', '.join(wrong)}; there are {', '.join(SIDES)}", param_hint="--side")
    sides = [name for name in SIDES if not side or name in side]
    enable_token_auth()
    report = Report("routing_live", "python -m benchmarks.routing_live " + " ".join(sys.argv[1:]), {})
    if set(sides) & set(doors.ROUTERS):
        ensure(SGLANG_ROUTER, console.log)
        report.more_versions[SGLANG_ROUTER.package] = SGLANG_ROUTER.version
    seconds = QUICK_SECONDS if quick else SECONDS
    with tempfile.TemporaryDirectory(prefix="tribes-routing-") as folder:
        config = isolated(engine_config(load_config(config_path)), Path(folder))
        report.config = described(config, sides, seconds)
        with _stage(config, Path(folder)) as stage:
            for number in range(rounds or (QUICK_ROUNDS if quick else ROUNDS)):
                _round(report, stage, number, rotated(sides, number), data, seconds)
                judge(report)
                report.write(json_path)  # what is measured is kept, whatever happens to the next round
    for name, ratio in report.ratios.items():
        shown = f"{name}: {ratio['median']:.4g} ({ratio['min']:.4g} to {ratio['max']:.4g})"
        console.print(f"{shown} {report.bars.get(name, '')}")


@dataclass(frozen=True, slots=True)
class Stage:
    """What is up for the whole benchmark."""

    folder: Path
    model: str
    ours: Target
    engines: list[Target]
    tokens: ChatTokens

    @contextlib.contextmanager
    def door(self, side: str) -> Iterator[Target]:
        if side == OURS:
            yield self.ours
            return
        with doors.router(side, self.engines, self.folder) as target:
            yield target


@contextlib.contextmanager
def _stage(config: TribesConfig, folder: Path) -> Iterator[Stage]:
    """The cluster, its engines warmed up through our door."""
    (deployment,) = config.deployments.values()
    model = deployment.model
    tokenizer = prepare_model(model, config.models[model], config.paths, console.log).folder
    if tokenizer is None:
        raise typer.BadParameter(f"model {model} has no folder here, where its tokenizer is", param_hint="--config")
    try:
        started = up(config, console.log)
        ours = Target(started.api_url.removesuffix("/v1"), started.api_key)
        engines = direct_targets(config, model, REPLICAS)
        for number, target in enumerate((*engines, ours)):
            prompts = [f"{number}-{count}: {'warm up ' * 200}" for count in range(WARM_UP_REQUESTS)]
            asyncio.run(measure(target, model, prompts, 4, WARM_UP_TOKENS))
        yield Stage(folder, model, ours, engines, ChatTokens(tokenizer))
    finally:
        down(config, STOP_GRACE_S, console.log)


def _round(report: Report, stage: Stage, number: int, sides: list[str], data: Path, seconds: float) -> None:
    """The same chats through each door, on empty caches."""
    asks = chats.chats(data, USERS, REQUESTS_PER_S, seconds, f"Round {number}")
    for side in sides:
        doors.empty_caches(stage.engines)
        with stage.door(side) as target:
            outcome: Outcome = asyncio.run(chatted(target, stage.model, asks, seconds))
        for failure in {turn.failure for turn in outcome.turns if turn.failure}:
            console.log(f"round {number} {side}: a request failed: {failure}")
        found = figures(outcome, seconds, stage.tokens, REPLICAS * CACHE_TOKENS)
        report.add(number, side, **found)
        console.log(f"round {number} {side}: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))


def engine_config(config: TribesConfig) -> TribesConfig:
    """`config` with its first online SGLang deployment alone, on two replicas with small caches."""
    found = [
        name
        for name, item in config.serving().items()
        if item.own_class is RequestClass.ONLINE and item.engine.kind == "sglang"
    ]
    if not found:
        raise typer.BadParameter("needs a deployment of SGLang that serves [online]", param_hint="--config")
    plain = config.model_dump(mode="json")
    deployment = plain["deployments"][found[0]]
    deployment["replicas"] |= {"min": REPLICAS, "max": REPLICAS}
    deployment["engine"]["args"]["max-total-tokens"] = CACHE_TOKENS
    plain["deployments"] = {found[0]: deployment}
    return TribesConfig.model_validate(plain)


def described(config: TribesConfig, sides: list[str], seconds: float) -> dict[str, Any]:
    """What all share, and each side's own configuration."""
    shared = {
        "engines": {name: item.model_dump(mode="json") for name, item in config.deployments.items()},
        "chats": {
            "questions": CHAT_FILE,
            "seconds": seconds,
            "users": USERS,
            "requests_per_s": REQUESTS_PER_S,
            "reading_s": READING_S,
            "applications": chats.APPLICATIONS,
            "system_chars": chats.SYSTEM_CHARS,
            "pasted_chars": chats.PASTED_CHARS,
            "longest_question_chars": chats.LONGEST_QUESTION_CHARS,
            "answer_tokens": chats.ANSWER_TOKENS,
        },
    }
    ours = {
        "path": "client -> HAProxy -> gateway -> engine"
        if config.ray.haproxy
        else "client -> Serve -> gateway -> engine",
        "gateway": config.gateway.model_dump(mode="json"),
        "scheduling": config.scheduling.model_dump(mode="json"),
    }
    routers = {side: {"command": " ".join(doors.command(side)[1:])} for side in doors.ROUTERS}
    own = {OURS: ours, **routers}
    return {**shared, **{side: own[side] for side in sides}}


def judge(report: Report) -> None:
    """Ratios and bars of the sides that were measured."""
    measured = {run["side"] for run in report.runs}
    if OURS not in measured:
        return
    report.compare("hit_rate_vs_ceiling", "hit_rate_vs_ceiling", OURS, OURS, lambda own, _: own)
    report.bar("hit_rate_vs_ceiling", ">= 0.9", lambda got: got >= 0.9)
    for rival in doors.ROUTERS:
        if rival in measured:
            name = f"ttft_p95_vs_{rival}"
            report.compare(name, "ttft_p95_ms", OURS, rival, lambda mine, other: mine / other)
            report.bar(name, "< 1", lambda got: got < 1)


if __name__ == "__main__":
    typer.run(main)

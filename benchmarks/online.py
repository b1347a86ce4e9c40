"""Does a real engine lose anything behind the gateway, and do replicas add up?

Two cases. `engine`: the engine of the first online deployment of CONFIG, asked directly on its own port with its own
key (bare), through Serve's endpoint behind HAProxy, and through the gateway's own listener: one process, the same
prompts' shapes, one side after the other in turn. 32 at once for tokens/s, 8 at once for the time between tokens. It
gets as many slots as the load has requests, so that no side is limited but by the engine. `replicas`: scripted engines
that make 200 tokens a second per request and run two at once, one and eight of them, with more requests than slots.

`python -m benchmarks.online --json FILE [--quick] [--case NAME ...] [--config FILE]`
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console

from benchmarks.gateway_sides.cases import rotated
from benchmarks.gateway_sides.closed_loop import closed
from benchmarks.gateway_sides.engine import MODULE, PACED
from benchmarks.gateway_sides.load import Door
from benchmarks.load import Target, measure
from benchmarks.relay import direct_target
from benchmarks.report import Report
from cluster.config import TribesConfig, load_config
from cluster.local.auth import enable_token_auth
from cluster.local.isolate import isolated
from cluster.local.up import Started, down, up
from cluster.vocabulary import RequestClass

CASES = ("engine", "replicas")
PAIRS, QUICK_PAIRS = 5, 2
BARE, SERVE_DOOR, OWN_DOOR = "bare", "tribes", "tribes_own_door"
SATURATION, CALM = 32, 8
REQUESTS = {SATURATION: 64, CALM: 32}
"""Concurrency -> requests a run."""
TOKENS = 32
ONE, EIGHT = "one", "eight"
REPLICAS = {ONE: 1, EIGHT: 8}
SLOTS, REPLICA_TOKENS = 2, 64
REPLICAS_S, QUICK_REPLICAS_S = 6.0, 3.0
STOP_GRACE_S = 10.0
console = Console(stderr=True)


def main(
    json_path: Annotated[Path, typer.Option("--json", help="Where the result goes.")],
    quick: Annotated[bool, typer.Option(help="Two pairs instead of five.")] = False,
    case: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(CASES)}.")] = None,
    config_path: Annotated[Path, typer.Option("--config", help="Of the real engine.")] = Path("configs/local.yaml"),
) -> None:
    cases = case or list(CASES)
    if wrong := set(cases) - set(CASES):
        raise typer.BadParameter(f"no case {', '.join(wrong)}; there are {', '.join(CASES)}", param_hint="--case")
    enable_token_auth()
    report = Report("online", "python -m benchmarks.online " + " ".join(sys.argv[1:]), {})
    if case and json_path.exists():
        keep_other_cases(report, json.loads(json_path.read_text()), cases)
    pairs = QUICK_PAIRS if quick else PAIRS
    with tempfile.TemporaryDirectory(prefix="tribes-online-") as folder:
        if "engine" in cases:
            measure_engine(report, load_config(config_path), Path(folder) / "engine", pairs)
            report.write(json_path)  # what is measured is kept, whatever happens to the next case
        if "replicas" in cases:
            seconds = QUICK_REPLICAS_S if quick else REPLICAS_S
            measure_replicas(report, Path(folder) / "replicas", pairs, seconds)
    judge(report)
    report.write(json_path)
    for name, ratio in report.ratios.items():
        shown = f"{name}: {ratio['median']:.4g} ({ratio['min']:.4g} to {ratio['max']:.4g})"
        console.print(f"{shown} {report.bars.get(name, '')}")


def keep_other_cases(report: Report, before: dict[str, Any], cases: list[str]) -> None:
    """Pairs are paired within their case, so cases that were measured at other times may stand in one file."""
    report.runs += [run for run in before["runs"] if run["case"] not in cases]
    report.config = {name: config for name, config in before["config"].items() if name not in cases}
    report.command = f"{before['command']}; {report.command}"


@contextmanager
def _cluster(config: TribesConfig, folder: Path) -> Iterator[tuple[TribesConfig, Started]]:
    folder.mkdir(parents=True, exist_ok=True)
    config = isolated(config, folder)
    try:
        yield config, up(config, console.log)
    finally:
        down(config, STOP_GRACE_S, console.log)


# --- the real engine --------------------------------------------------------------------------------------------------


def measure_engine(report: Report, config: TribesConfig, folder: Path, pairs: int) -> None:
    """All runs on the real engine."""
    config = engine_config(config)
    (name,) = config.deployments
    model = config.deployments[name].model
    with _cluster(config, folder) as (config, started):
        targets = {
            BARE: direct_target(config, model),
            SERVE_DOOR: Target(started.api_url.removesuffix("/v1"), started.api_key),
            OWN_DOOR: Target(f"http://{config.gateway.host}:{config.gateway.own_door.port}", started.api_key),
        }
        report.config["engine"] = {
            "deployment": config.deployments[name].model_dump(mode="json"),
            "gateway": config.gateway.model_dump(mode="json"),
            "haproxy": config.ray.haproxy,
            "requests": {str(concurrency): requests for concurrency, requests in REQUESTS.items()},
            "tokens": TOKENS,
        }
        asyncio.run(_engine_pairs(report, targets, model, pairs))


def engine_config(config: TribesConfig) -> TribesConfig:
    """`config` with its first online deployment alone, a slot for every request of the load, and the own listener."""
    found = [(name, item) for name, item in config.serving().items() if item.own_class is RequestClass.ONLINE]
    if not found:
        raise typer.BadParameter("needs a deployment that serves [online]", param_hint="--config")
    name, item = found[0]
    plain = config.model_dump(mode="json")
    plain["deployments"] = {name: {**plain["deployments"][name], "max_running": max(SATURATION, item.max_running)}}
    plain["gateway"]["own_door"]["port"] = plain["gateway"]["own_door"]["port"] or 1  # `isolated` takes a free one
    return TribesConfig.model_validate(plain)


async def _engine_pairs(report: Report, targets: dict[str, Target], model: str, pairs: int) -> None:
    for side, target in targets.items():
        await measure(target, model, _prompts(SATURATION, f"warm-up {side}"), SATURATION, TOKENS)
    for pair in range(pairs):
        for concurrency, requests in REQUESTS.items():
            for side in rotated(list(targets), pair):
                prompts = _prompts(requests, f"{pair}-{concurrency}-{side}")
                figures = await measure(targets[side], model, prompts, concurrency, TOKENS)
                report.add(pair, side, case="engine", concurrency=concurrency, **figures)
                console.log(f"pair {pair} c={concurrency} {side}: {figures}")


def _prompts(count: int, salt: str) -> list[str]:
    """Prompts of one length that share no prefix between runs, so that no side profits from another's cache."""
    return [f"{salt} {number}: tell me something worth knowing about the number {number}." for number in range(count)]


# --- scripted replicas ------------------------------------------------------------------------------------------------


def measure_replicas(report: Report, folder: Path, pairs: int, seconds: float) -> None:
    """One and eight replicas of the same engine in one cluster."""
    folder.mkdir(parents=True, exist_ok=True)
    with _cluster(replicas_config(folder), folder) as (config, started):
        report.config["replicas"] = {
            "engine": f"{MODULE}, 200 tokens a second per request",
            "slots_per_replica": SLOTS,
            "requests_per_slot": 2,
            "tokens_per_request": REPLICA_TOKENS,
            "replicas": REPLICAS,
            "haproxy": config.ray.haproxy,
        }
        base_url = started.api_url.removesuffix("/v1")
        for pair in range(-1, pairs):  # the first one warms up
            for side in rotated([ONE, EIGHT], pair % 2):
                door = Door(base_url, (started.api_key,), side)
                tokens_per_s = asked(door, REPLICAS[side], seconds)
                if pair >= 0:
                    report.add(pair, side, case="replicas", replicas=REPLICAS[side], tokens_per_s=tokens_per_s)
                    console.log(f"pair {pair} {side}: {tokens_per_s:.0f} tokens/s")


def asked(door: Door, replicas: int, seconds: float) -> float:
    """Tokens a second while twice as many requests as there are slots are sent."""
    at_once = 2 * SLOTS * replicas
    outcome = uvloop.run(closed(door, f"{PACED} Go on.", at_once, seconds, count_tokens=True))
    if failed := [answer.said for answer in outcome.answers if not answer.ok]:
        raise RuntimeError(f"{len(failed)} of {len(outcome.answers)} requests to {door.model} failed: {failed[0]!r}")
    return outcome.tokens / seconds


def replicas_config(folder: Path) -> TribesConfig:
    """A model a side, of the same scripted engine."""
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"architectures": ["Scripted"]}))
    deployment = {
        "serves": ["online"],
        "engine": {"kind": "vllm", "entrypoint": ["python", "-m", MODULE], "args": {"tokens": REPLICA_TOKENS}},
        "resources": {"cpus": 0.1},
        "max_running": SLOTS,
    }
    return TribesConfig.model_validate(
        {
            "models": {side: {"source": {"kind": "local", "path": str(model)}} for side in REPLICAS},
            "deployments": {
                side: {**deployment, "model": side, "replicas": {"min": count, "max": count}}
                for side, count in REPLICAS.items()
            },
            "paths": {"data": str(folder), "models": str(folder / "models")},
            "ray": {"num_cpus": 8, "object_store_gib": 0.2},
        }
    )


# --- ratios -----------------------------------------------------------------------------------------------------------


def judge(report: Report) -> None:
    """Ratios and bars of the cases that were measured."""
    measured = {run["case"] for run in report.runs}
    if "engine" in measured:
        for prefix, side in (("", SERVE_DOOR), ("own_door_", OWN_DOOR)):
            for name, metric, concurrency in (
                ("tokens_per_s_vs_bare", "tokens_per_s", SATURATION),
                ("itl_p50_vs_bare", "itl_p50_ms", CALM),
            ):
                where = {"case": "engine", "concurrency": concurrency}
                report.compare(prefix + name, metric, side, BARE, lambda mine, bare: mine / bare, **where)
        report.bar("tokens_per_s_vs_bare", ">= 0.97", lambda got: got >= 0.97)
        report.bar("itl_p50_vs_bare", "<= 1.03", lambda got: got <= 1.03)
    if "replicas" in measured:
        name, times = "eight_replicas_vs_linear", REPLICAS[EIGHT] / REPLICAS[ONE]
        report.compare(name, "tokens_per_s", EIGHT, ONE, lambda many, one: many / (one * times), case="replicas")
        report.bar(name, ">= 0.95", lambda got: got >= 0.95)


if __name__ == "__main__":
    typer.run(main)

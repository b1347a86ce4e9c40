"""Case `replicas`: whether eight replicas do eight times the work of one.

Scripted engines that make 200 tokens a second per request and run two at once, one and eight of them in one cluster,
with more requests than slots. Owns: its configuration, its load, its ratio. Must not know: real engines.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import uvloop

from benchmarks.gateway_sides.cases import rotated
from benchmarks.gateway_sides.closed_loop import closed
from benchmarks.gateway_sides.engine import MODULE, PACED
from benchmarks.gateway_sides.load import Door
from benchmarks.online_sides.ours import tribes
from benchmarks.report import Report
from cluster.config import TribesConfig

CASE = "replicas"
ONE, EIGHT = "one", "eight"
REPLICAS = {ONE: 1, EIGHT: 8}
SLOTS, REPLICA_TOKENS = 2, 64


def measure_replicas(report: Report, folder: Path, pairs: int, seconds: float, say: Callable[[str], None]) -> None:
    """All runs of the case."""
    folder.mkdir(parents=True, exist_ok=True)
    with tribes(replicas_config(folder), folder, say) as (config, started):
        report.config[CASE] = {
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
                    report.add(pair, side, case=CASE, replicas=REPLICAS[side], tokens_per_s=tokens_per_s)
                    say(f"pair {pair} {side}: {tokens_per_s:.0f} tokens/s")


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


def judge_replicas(report: Report) -> None:
    """The ratio and bar of the case."""
    name, times = "eight_replicas_vs_linear", REPLICAS[EIGHT] / REPLICAS[ONE]
    report.compare(name, "tokens_per_s", EIGHT, ONE, lambda many, one: many / (one * times), case=CASE)
    report.bar(name, ">= 0.95", lambda got: got >= 0.95)

"""What does the gateway cost on a real engine? The same requests straight to the engine's server and through it.

Both sides use one running replica: the direct side learns its address and private key through a lease, as gateways do.
Keys, tenants, the queue, leases and the ledger are all on. `python -m benchmarks.relay --json FILE [--quick]`
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.load import Target, measure
from benchmarks.report import Report
from cluster.config import TribesConfig, load_config
from cluster.local.auth import enable_token_auth
from cluster.local.isolate import isolated
from cluster.local.up import Started, down, up
from cluster.scheduling import Ticket
from cluster.vocabulary import RequestClass

TOKENS = 24
PAIRS, QUICK_PAIRS = 6, 3
REQUESTS = {1: 4, 8: 16}
"""Concurrency -> requests a run."""
DIRECT, GATEWAY = "direct", "gateway"
MOST_LEASES = 32
console = Console(stderr=True)


def main(
    json_path: Annotated[Path, typer.Option("--json", help="Where the result goes.")],
    quick: Annotated[bool, typer.Option(help="Three pairs instead of six.")] = False,
    config_path: Annotated[Path, typer.Option("--config")] = Path("configs/local.yaml"),
) -> None:
    enable_token_auth()
    with tempfile.TemporaryDirectory() as folder:
        config = isolated(load_config(config_path), Path(folder))
        started = up(config, console.log)
        try:
            report = asyncio.run(_run(config, started, QUICK_PAIRS if quick else PAIRS))
        finally:
            down(config, 10, console.log)
    report.write(json_path)
    for name, ratio in report.ratios.items():
        console.print(f"{name}: {ratio['median']:.4g} ({ratio['min']:.4g} to {ratio['max']:.4g})")


async def _run(config: TribesConfig, started: Started, pairs: int) -> Report:
    model = next(iter(config.models))
    targets = {
        DIRECT: await asyncio.to_thread(direct_target, config, model),
        GATEWAY: Target(started.api_url.removesuffix("/v1"), started.api_key),
    }
    name, deployment = next((n, d) for n, d in config.serving().items() if RequestClass.ONLINE in d.serves)
    report = Report("relay", "python -m benchmarks.relay " + " ".join(sys.argv[1:]), _config(config, name, deployment))
    for target in targets.values():
        await measure(target, model, _prompts(8, "warm-up"), 8, TOKENS)
    for pair in range(pairs):
        for concurrency, requests in REQUESTS.items():
            # The order alternates, so that a drift of the machine favours neither side.
            for side in (DIRECT, GATEWAY) if pair % 2 == 0 else (GATEWAY, DIRECT):
                prompts = _prompts(requests, f"{pair}-{concurrency}-{side}")
                figures = await measure(targets[side], model, prompts, concurrency, TOKENS)
                report.add(pair, side, concurrency=concurrency, **figures)
                console.log(f"pair {pair} c={concurrency} {side}: {figures}")
    for concurrency in REQUESTS:
        where = {"concurrency": concurrency}
        report.compare(f"added_ttft_p50_ms_c{concurrency}", "ttft_p50_ms", GATEWAY, DIRECT, lambda a, b: a - b, **where)
        report.compare(f"itl_p50_vs_direct_c{concurrency}", "itl_p50_ms", GATEWAY, DIRECT, lambda a, b: a / b, **where)
        report.compare(
            f"tokens_per_s_vs_direct_c{concurrency}", "tokens_per_s", GATEWAY, DIRECT, lambda a, b: a / b, **where
        )
    return report


def _prompts(count: int, salt: str) -> list[str]:
    """Prompts of one length that share no prefix between runs, so that no side profits from the other's cache."""
    return [f"{salt} {number}: tell me something worth knowing about the number {number}." for number in range(count)]


def _config(config: TribesConfig, name: str, deployment: Any) -> dict[str, Any]:
    engine = {"deployment": name, **deployment.model_dump(mode="json")}
    return {
        DIRECT: {"engine": engine, "path": "client -> engine server"},
        GATEWAY: {
            "engine": engine,
            "path": "client -> "
            + ("HAProxy -> " if config.ray.haproxy else "Serve proxy -> ")
            + "gateway -> engine server",
            "gateway": config.gateway.model_dump(mode="json"),
            "tokens": TOKENS,
        },
    }


def direct_target(config: TribesConfig, model: str) -> Target:
    """The engine server's address and key, learned through a lease that is given back at once."""
    return direct_targets(config, model, 1)[0]


def direct_targets(config: TribesConfig, model: str, replicas: int) -> list[Target]:
    """Those of several replicas: each lease is held until all are known, so that the next one is elsewhere."""
    import ray

    from serve_apps.messages import Exchange, Hello
    from serve_apps.names import NAMESPACE, get_dispatcher

    ray.init(address=f"127.0.0.1:{config.ray.port}", namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    found: dict[str, Target] = {}
    try:
        dispatcher, me = get_dispatcher(model), f"benchmark-{os.getpid()}"
        ray.get(dispatcher.hello.remote(Hello(me)))
        for number in range(MOST_LEASES):
            ticket = Ticket(f"benchmark-{number}", me, "default", RequestClass.ONLINE, 1, 1, time.time())
            answers = ray.get(dispatcher.exchange.remote(Exchange(me, submits=[ticket])))
            found |= {grant.base_url: Target(grant.base_url, grant.api_key) for grant in answers.grants}
            if len(found) == replicas:
                break
        ray.get(dispatcher.goodbye.remote(me))
    finally:
        ray.shutdown()
    if len(found) < replicas:
        raise RuntimeError(f"{MOST_LEASES} leases on {model} were on {len(found)} replicas, not {replicas}")
    return list(found.values())


if __name__ == "__main__":
    typer.run(main)

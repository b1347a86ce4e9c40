"""Where does the time of a request go? The gateway's own door under cProfile, without Ray.

`python -m benchmarks.gateway_sides.profile_door [--seconds S] [--at-once N] [--sort tottime] [--out FILE]`

Real: the Gateway under uvicorn, its lease client, ledger, keys and metrics, and the Dispatcher with prepaid leases.
Imitated: Ray's actor handle, whose messages are pickled and carried inside this process, so the dispatcher's share of
the list would be another process's. Engine and load generator are processes of their own. Under the profiler Python is
two to three times as slow: the list says where time goes, not how much there is.

To look at a running cluster instead: `py-spy record --pid PID -o flame.svg` with the process of the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import cProfile
import pstats
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
import uvloop

from benchmarks.gateway_sides import drive, ours
from benchmarks.gateway_sides.cases import TEXT
from benchmarks.gateway_sides.engine import MODULE
from benchmarks.gateway_sides.load import Door
from benchmarks.gateway_sides.up import process, wait_answering
from cluster.config import TribesConfig
from cluster.engines import free_port
from cluster.metrics.requests import RequestMetrics
from cluster.state import Store
from serve_apps.dispatcher import Dispatcher
from serve_apps.gateway.asgi import Gateway
from serve_apps.gateway.deployment import OWN_SERVER
from serve_apps.leases import LeaseClient
from serve_apps.messages import ReplicaReport
from tests.unit.serve_apps.adapter import Handle

REPORT_S = 1.0
WARM_UP_S = 2.0
LINES = 45


def main(
    seconds: Annotated[float, typer.Option(help="How long the load runs under the profiler.")] = 8.0,
    at_once: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 1,
    sort: Annotated[str, typer.Option(help="tottime, cumtime or ncalls.")] = "tottime",
    lines: Annotated[int, typer.Option(help="Functions to show.")] = LINES,
    plain: Annotated[bool, typer.Option(help="No profiler: only the load's figures.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where the raw profile goes, for snakeviz and the like.")] = None,
) -> None:
    with tempfile.TemporaryDirectory(prefix="tribes-profile-") as folder:
        profile = None if plain else cProfile.Profile()
        figures = uvloop.run(_run(Path(folder), profile, seconds, at_once))
    print(figures)
    if profile is not None:
        if out is not None:
            profile.dump_stats(out)
        pstats.Stats(profile, stream=sys.stdout).sort_stats(sort).print_stats(lines)


async def _run(folder: Path, profile: cProfile.Profile | None, seconds: float, at_once: int) -> str:
    config = ours.configuration(folder)
    store = Store(config.state.url)
    store.create()
    store.add_tenants({name: tenant.model_dump(mode="json") for name, tenant in config.tenants.items()})
    key = store.create_key(ours.TENANT)[1]
    port, engine_port, engine_key = free_port("127.0.0.1"), free_port("127.0.0.1"), secrets.token_hex(24)
    door = Door(f"http://127.0.0.1:{port}", (key,), ours.WIDE)
    flags = ["--port", str(engine_port), "--api-key", engine_key, "--served-model-name", ours.WIDE]
    with process([sys.executable, "-m", MODULE, *flags], {}, folder / "engine.log") as pid:
        engine = Door(f"http://127.0.0.1:{engine_port}", (engine_key,), ours.WIDE)
        await asyncio.to_thread(wait_answering, engine, pid, folder / "engine.log")
        async with contextlib.AsyncExitStack() as stack:
            handles = await stack.enter_async_context(_dispatchers(config, engine))
            gateway = Gateway(config, store, lambda m: LeaseClient(handles[m], "gw"), RequestMetrics(), _no_page)
            await stack.enter_async_context(_listening(gateway, port))
            await _drive(door, at_once, WARM_UP_S)
            if profile is None:
                return await _drive(door, at_once, seconds)
            profile.enable()
            figures = await _drive(door, at_once, seconds)
            profile.disable()
            return figures


@contextlib.asynccontextmanager
async def _dispatchers(config: TribesConfig, engine: Door) -> AsyncIterator[dict[str, Handle]]:
    """One for each model, each with a replica that reports as replica actors do."""
    plain = config.model_dump(mode="json")
    handles = {model: Handle(Dispatcher(plain, model)) for model in config.models}

    async def report_forever() -> None:
        while True:
            for model, handle in handles.items():
                where, key = engine.base_url, engine.api_keys[0]
                report = ReplicaReport(f"{model}/r", model, "ready", time.time(), base_url=where, api_key=key)
                await handle.report.remote(report)
            await asyncio.sleep(REPORT_S)

    reporting = asyncio.create_task(report_forever())
    try:
        yield handles
    finally:
        reporting.cancel()
        for handle in handles.values():
            if handle.actor is not None:
                handle.actor.kill()


@contextlib.asynccontextmanager
async def _listening(gateway: Gateway, port: int) -> AsyncIterator[None]:
    """As OwnDoor does it."""
    settings = uvicorn.Config(gateway, host="127.0.0.1", port=port, **OWN_SERVER)  # type: ignore[arg-type]
    server = uvicorn.Server(settings)
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started and not serving.done():  # noqa: ASYNC110  # uvicorn says it by this alone
            await asyncio.sleep(0.02)
        yield
    finally:
        server.should_exit = True
        await serving


async def _drive(door: Door, at_once: int, seconds: float) -> str:
    child = await asyncio.create_subprocess_exec(*drive.command(door, TEXT, at_once, seconds), stdout=subprocess.PIPE)
    output, _ = await child.communicate()
    return output.decode().strip()


async def _no_page() -> bytes:
    return b""


if __name__ == "__main__":
    typer.run(main)

"""This project's cluster before the scripted engine: keys, tenants, the queue, leases and the ledger all on.

Three doors of one cluster: Serve's HTTP endpoint behind HAProxy, the gateway's own listener, and Serve's endpoint for
a model whose few slots two tenants fight over, so that every prepaid lease is recalled and the dispatcher decides each
request. The engine is a process of the same program as every other side's, started by its replica.

Owns: the configuration, start and stop. Must not know: what is measured.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gateway_sides import accounts
from benchmarks.gateway_sides.engine import MODULE
from benchmarks.gateway_sides.load import Door
from benchmarks.gateway_sides.up import Up
from cluster.config import TribesConfig
from cluster.local import processes, read_run
from cluster.local.isolate import isolated
from cluster.local.up import down, up
from cluster.state import Store

SERVE_DOOR, OWN_DOOR, CONTENDED = "tribes", "tribes_own_door", "tribes_contended"
WIDE, NARROW = "wide", "narrow"
WIDE_SLOTS, NARROW_SLOTS = 256, 8
TENANT = "measured"
RIVALS = ("rival-a", "rival-b")
STOP_GRACE_S = 5.0


@contextlib.contextmanager
def tribes(folder: Path, say: Callable[[str], None]) -> Iterator[Up]:
    config = isolated(configuration(folder), folder)
    try:
        started = up(config, say)
        run = read_run(config)
        assert run is not None
        keys = _keys(config)
        serve = started.api_url.removesuffix("/v1")
        own = f"http://{config.gateway.host}:{config.gateway.own_door.port}"
        doors = {
            SERVE_DOOR: Door(serve, (keys[TENANT],), WIDE),
            OWN_DOOR: Door(own, (keys[TENANT],), WIDE),
            CONTENDED: Door(serve, tuple(keys[rival] for rival in RIVALS), NARROW),
        }
        third = {CONTENDED: Door(serve, (keys[TENANT],), NARROW)}
        yield Up(doors, lambda: without_engines(processes.marked_pids(run.marker)), described(config), third)
    finally:
        down(config, STOP_GRACE_S, say)


def without_engines(pids: list[int]) -> set[int]:
    """The engines and their guards are not part of a gateway's cost."""
    return {pid for pid in pids if not accounts.runs_module(pid, MODULE)}


def configuration(folder: Path) -> TribesConfig:
    """Two models of the same engine that differ in their slots."""
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text(json.dumps({"architectures": ["Scripted"]}))
    source = {"source": {"kind": "local", "path": str(model)}, "max_model_len": 4096}
    return TribesConfig.model_validate(
        {
            "models": {WIDE: source, NARROW: source},
            "deployments": {WIDE: _deployment(WIDE, WIDE_SLOTS), NARROW: _deployment(NARROW, NARROW_SLOTS)},
            "tenants": {"default": {}, TENANT: {}, **{rival: {} for rival in RIVALS}},
            "gateway": {"own_door": {"port": 1}},  # any: `isolated` takes a free one
            "paths": {"data": str(folder / "data"), "models": str(folder / "models")},
            "ray": {"num_cpus": 4, "object_store_gib": 0.2, "haproxy": True},
        }
    )


def _deployment(model: str, slots: int) -> dict[str, Any]:
    return {
        "model": model,
        "serves": ["online"],
        "engine": {"kind": "vllm", "entrypoint": ["python", "-m", MODULE]},
        "resources": {"cpus": 0.1},
        "max_running": slots,
    }


def described(config: TribesConfig) -> dict[str, Any]:
    """What matters of the configuration."""
    return {
        "gateway": config.gateway.model_dump(mode="json"),
        "scheduling": config.scheduling.model_dump(mode="json"),
        "slots": {WIDE: WIDE_SLOTS, NARROW: NARROW_SLOTS},
        "haproxy": config.ray.haproxy,
        SERVE_DOOR: "client -> HAProxy -> gateway (Serve replica) -> engine; capacity is free, leases are prepaid",
        OWN_DOOR: "client -> gateway (its own uvicorn) -> engine; the same, and the Serve door idle beside it",
        CONTENDED: f"as {SERVE_DOOR}, {NARROW_SLOTS} slots for two tenants who ask for more: no prepaid lease",
    }


def _keys(config: TribesConfig) -> dict[str, str]:
    store = Store(config.state.url)
    try:
        return {tenant: store.create_key(tenant)[1] for tenant in (TENANT, *RIVALS)}
    finally:
        store.close()

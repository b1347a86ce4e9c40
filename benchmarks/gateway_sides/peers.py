"""Other gateways: LiteLLM's proxy, vLLM's router and SGLang's, as their documentation starts them, each one process.

Each is set up to do no more than it must for one engine: no database, no log line per request, the simplest policy. The
routers ask for no key of their own and pass the client's on to the engine; LiteLLM has its one master key.

Owns: their command lines. Must not know: what is measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import yaml

from benchmarks.gateway_sides import accounts
from benchmarks.gateway_sides.environments import LITELLM, SGLANG_ROUTER, VLLM_ROUTER, Peer, ensure
from benchmarks.gateway_sides.load import Door
from benchmarks.gateway_sides.up import Up, process, wait_answering
from cluster.engines import free_port

LOOPBACK = "127.0.0.1"
MASTER_KEY = "sk-benchmark"
LITELLM_ENV = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    # The list of prices would be fetched from the internet at start.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
PEERS: dict[str, Peer] = {"litellm": LITELLM, "vllm_router": VLLM_ROUTER, "sglang_router": SGLANG_ROUTER}


@contextlib.contextmanager
def litellm(engine: Door, folder: Path) -> Iterator[Up]:
    """One worker process. No key of a tenant: keys need its database, which would only make it slower."""
    model = {"model": f"openai/{engine.model}", "api_base": f"{engine.base_url}/v1", "api_key": engine.api_keys[0]}
    config = {
        "model_list": [{"model_name": engine.model, "litellm_params": model}],
        "general_settings": {"master_key": MASTER_KEY},
        "litellm_settings": {"set_verbose": False, "telemetry": False},
    }
    path = folder / "litellm.yaml"
    path.write_text(yaml.safe_dump(config))
    port = free_port(LOOPBACK)
    command = [
        str(LITELLM.folder / "bin" / "litellm"), "--config", str(path), "--host", LOOPBACK, "--port", str(port),
        "--num_workers", "1",
    ]  # fmt: skip
    door = Door(f"http://{LOOPBACK}:{port}", (MASTER_KEY,), engine.model)
    with _started("litellm", command, LITELLM_ENV, door, folder) as up:
        yield up


@contextlib.contextmanager
def vllm_router(engine: Door, folder: Path) -> Iterator[Up]:
    with _router("vllm_router", VLLM_ROUTER, "warning", engine, folder) as up:
        yield up


@contextlib.contextmanager
def sglang_router(engine: Door, folder: Path) -> Iterator[Up]:
    with _router("sglang_router", SGLANG_ROUTER, "warn", engine, folder) as up:
        yield up


@contextlib.contextmanager
def _router(name: str, peer: Peer, log_level: str, engine: Door, folder: Path) -> Iterator[Up]:
    port = free_port(LOOPBACK)
    command = [
        str(peer.folder / "bin" / "python"), "-m", f"{name}.launch_router",
        "--worker-urls", engine.base_url, "--policy", "round_robin",
        "--host", LOOPBACK, "--port", str(port), "--prometheus-port", str(free_port(LOOPBACK)),
        "--worker-startup-check-interval", "1", "--log-level", log_level,
    ]  # fmt: skip
    door = Door(f"http://{LOOPBACK}:{port}", engine.api_keys, engine.model)
    with _started(name, command, {}, door, folder) as up:
        yield up


@contextlib.contextmanager
def _started(name: str, command: list[str], env: dict[str, str], door: Door, folder: Path) -> Iterator[Up]:
    log = folder / f"{name}.log"
    # In the folder: some write files to where they are started.
    with process(command, env, log, cwd=folder) as pid:
        wait_answering(door, pid, log)
        shown = [Path(command[0]).name, *command[1:]]
        yield Up({name: door}, lambda: accounts.tree(pid), {"command": " ".join(shown), "env": env})


def build_environments(names: Collection[str], say: Callable[[str], None]) -> None:
    """Those of the peers among `names`, before anything is measured."""
    for name, peer in PEERS.items():
        if name in names:
            ensure(peer, say)

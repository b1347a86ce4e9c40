"""A whole local cluster for tests: configuration, start, stop, and the check that nothing is left.

Owns: free ports and a private data folder per cluster. Must not know: what tests do with it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cluster.config import TribesConfig
from cluster.local import processes, read_run
from cluster.local.up import Started, down, up
from cluster.state import Store

REPO = Path(__file__).parents[2]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@dataclass
class Stack:
    """A running cluster."""

    config: TribesConfig
    started: Started

    @property
    def base_url(self) -> str:
        return self.started.api_url.removesuffix("/v1")

    @property
    def store(self) -> Store:
        return Store(self.config.state.url)

    def key(self, tenant: str) -> str:
        return self.store.create_key(tenant)[1]

    def headers(self, key: str | None = None) -> dict[str, str]:
        return {"Authorization": f"Bearer {key or self.started.api_key}"}

    def status(self, model: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.base_url}/tribes/status", headers=self.headers(), timeout=10)
        answer.raise_for_status()
        return next(m for m in answer.json()["models"] if m["model"] == model)

    def replicas(self, model: str, deployment: str, state: str = "ready") -> list[dict[str, Any]]:
        replicas = self.status(model)["replicas"]
        return [r for r in replicas if r["deployment"] == deployment and r["state"] == state]

    def wait(self, what: str, condition: Any, timeout_s: float, poll_s: float = 0.1) -> float:
        """Seconds until `condition()` is true; fails with `what` when it does not become so."""
        start = time.monotonic()
        while True:
            try:
                if condition():
                    return time.monotonic() - start
            except httpx.HTTPError:
                pass  # the gateway or dispatcher is being replaced
            if time.monotonic() - start > timeout_s:
                raise AssertionError(f"{what}: not within {timeout_s} s")
            time.sleep(poll_s)


@contextmanager
def running(config: TribesConfig) -> Iterator[Stack]:
    """Start the cluster, stop it, and fail if a process, a port or shared memory is left."""
    shared_memory = set(Path("/dev/shm").iterdir())

    def say(line: str) -> None:
        print(f"[stack] {line}", flush=True)

    try:
        started = up(config, say)
        run = read_run(config)
        assert run is not None
        yield Stack(config, started)
    finally:
        down(config, 20.0, say)  # a start that failed half way too
    assert processes.marked_pids(run.marker) == []
    assert set(Path("/dev/shm").iterdir()) <= shared_memory
    for port in (config.gateway.port, config.ray.port, config.ray.dashboard_port):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} still answers"

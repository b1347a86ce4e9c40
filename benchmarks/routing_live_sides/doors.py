"""The engines themselves, and SGLang's router before them as its documentation starts it.

The engines are those of this project's cluster, reached without it: each has a key of its own, which the router is told
with the address. Owns: emptying caches, the router's start and end. Must not know: what is measured.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx

from benchmarks.gateway_sides.environments import SGLANG_ROUTER
from benchmarks.gateway_sides.up import LOG_LINES, process
from benchmarks.load import Target
from cluster.engines import free_port

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 60.0
POLL_S = 0.1
FLUSH_TIMEOUT_S = 30.0
ROUTERS: dict[str, tuple[str, ...]] = {
    "cache_aware": ("--policy", "cache_aware"),
    # Its thresholds are for hundreds of requests at once: as many times smaller as there are fewer here.
    "cache_aware_tuned": (
        "--policy", "cache_aware", "--balance-abs-threshold", "4", "--balance-rel-threshold", "1.2",
    ),
    "round_robin": ("--policy", "round_robin"),
    "random": ("--policy", "random"),
}  # fmt: skip
"""By side: what is set of the router; everything else is as it comes."""


def empty_caches(engines: Sequence[Target]) -> None:
    """Waits for what an engine still runs, which keeps its cache until then."""
    for engine in engines:
        answer = httpx.post(
            f"{engine.base_url}/flush_cache",
            params={"timeout": FLUSH_TIMEOUT_S},
            headers={"Authorization": f"Bearer {engine.api_key}"},
            timeout=2 * FLUSH_TIMEOUT_S,
        )
        if answer.status_code != 200:
            raise RuntimeError(f"an engine did not empty its cache: {answer.status_code} {answer.text[:200]}")


@contextlib.contextmanager
def router(side: str, engines: Sequence[Target], folder: Path) -> Iterator[Target]:
    """The address of a router that knows the engines and has seen no request. It asks for no key."""
    port, log = free_port(LOOPBACK), folder / f"{side}.log"
    url = f"http://{LOOPBACK}:{port}"
    with process([*command(side), "--port", str(port), "--prometheus-port", str(free_port(LOOPBACK))], {}, log, folder):
        try:
            with httpx.Client(base_url=url, timeout=10) as http:
                _introduce(http, engines, time.monotonic() + START_TIMEOUT_S)
        except (httpx.HTTPError, TimeoutError) as error:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
            raise RuntimeError(f"the router did not start ({error!r}); its log ends with:\n{tail}") from error
        yield Target(url, "")


def command(side: str) -> list[str]:
    """Without its ports."""
    return [
        str(SGLANG_ROUTER.folder / "bin" / "python"), "-m", "sglang_router.launch_router", *ROUTERS[side],
        "--host", LOOPBACK, "--worker-startup-check-interval", "1", "--log-level", "warn",
    ]  # fmt: skip


def _introduce(http: httpx.Client, engines: Sequence[Target], deadline_s: float) -> None:
    """Raises TimeoutError when the router does not find all engines healthy in time."""
    _until(lambda: _listens(http), deadline_s)
    for engine in engines:
        http.post("/workers", json={"url": engine.base_url, "api_key": engine.api_key}).raise_for_status()
    _until(lambda: _healthy(http) == len(engines), deadline_s)


def _listens(http: httpx.Client) -> bool:
    with contextlib.suppress(httpx.ConnectError):
        return http.get("/liveness").status_code == 200
    return False


def _healthy(http: httpx.Client) -> int:
    workers = http.get("/workers").raise_for_status().json()["workers"]
    return sum(worker["is_healthy"] for worker in workers)


def _until(holds: Callable[[], bool], deadline_s: float) -> None:
    while not holds():
        if time.monotonic() > deadline_s:
            raise TimeoutError("time is up")
        time.sleep(POLL_S)

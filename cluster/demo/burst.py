"""Semi-online work: three tenants send all their requests at once, while the cluster is watched.

Owns: the requests, and one sample of the cluster a second. Must not know: how replicas come to be.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from cluster.cli.api import RequestFailed, bearer, stream_chat
from cluster.demo.results import RequestResult, Sample

REQUESTS_PER_TENANT = 12
"""Times three is more than the two local replicas take at once, so that somebody has to wait."""
MAX_TOKENS = 48
SAMPLE_S = 1.0
TAIL_S = 2.0
"""Seconds watched after the last answer, so that the end is seen too."""
TOPICS = (
    "lighthouses", "bread", "glaciers", "bicycles", "violins", "volcanoes", "maps", "honey",
    "clocks", "tides", "paper", "comets", "bridges", "salt", "windmills", "coral",
)  # fmt: skip

OnSample = Callable[[Sample, int], None]


async def run_burst(
    client: httpx.AsyncClient,
    keys: Mapping[str, str],
    status_key: str,
    model: str,
    deployments: Sequence[str],
    on_sample: OnSample,
    timeout_s: float,
) -> tuple[list[RequestResult], list[Sample], float]:
    """Send everything, wait for all of it: (requests, samples, seconds from the first byte sent to the last received).

    `keys`: tenant -> API key. `deployments`: whose replicas are counted. `on_sample` also gets how many are done.
    A request that is not answered within `timeout_s` counts as failed.
    """
    began_s = time.monotonic()
    done: list[RequestResult] = []
    samples: list[Sample] = []

    async def watch() -> None:
        while True:
            with contextlib.suppress(httpx.HTTPError, ValueError):
                response = await client.get("/tribes/status", headers=bearer(status_key), timeout=SAMPLE_S * 5)
                if response.status_code == 200:
                    sample = read_sample(response.json(), model, deployments, time.monotonic() - began_s)
                    samples.append(sample)
                    on_sample(sample, len(done))
            await asyncio.sleep(SAMPLE_S)

    async def send(tenant: str, prompt: str) -> None:
        done.append(await _request(client, keys[tenant], tenant, model, prompt, timeout_s))

    watcher = asyncio.create_task(watch())
    try:
        async with asyncio.TaskGroup() as group:
            for tenant, prompt in prompts(list(keys)):
                group.create_task(send(tenant, prompt))
        wall_s = time.monotonic() - began_s
        await asyncio.sleep(TAIL_S)
    finally:
        watcher.cancel()
    return done, samples, wall_s


def prompts(tenants: Sequence[str]) -> list[tuple[str, str]]:
    """(tenant, prompt) pairs in the order they are sent; every prompt is another, so that no cache helps."""
    return [
        (tenant, f"Write two sentences about {TOPICS[(position + 5 * number) % len(TOPICS)]} for reader {number + 1}.")
        for position in range(REQUESTS_PER_TENANT)
        for number, tenant in enumerate(tenants)
    ]


async def _request(
    client: httpx.AsyncClient, key: str, tenant: str, model: str, prompt: str, timeout_s: float
) -> RequestResult:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "service_tier": "flex",
    }
    try:
        async with asyncio.timeout(timeout_s):
            return RequestResult(tenant, prompt, await stream_chat(client, key, body))
    except TimeoutError:
        return RequestResult(tenant, prompt, error=f"no complete answer within {timeout_s:.0f} s")
    except (RequestFailed, httpx.HTTPError) as error:
        return RequestResult(tenant, prompt, error=str(error) or type(error).__name__)


def read_sample(status: Mapping[str, Any], model: str, deployments: Sequence[str], t_s: float) -> Sample:
    """The burst's part of `/tribes/status`."""
    found: Mapping[str, Any] = next((item for item in status.get("models", []) if item.get("model") == model), {})
    states = [item["state"] for item in found.get("replicas", []) if item["deployment"] in deployments]
    scaling = found.get("scaling", {})
    book = found.get("classes", {}).get("semi_online", {})
    waiting = book.get("waiting_by_tenant", {})
    return Sample(
        t_s=round(t_s, 3),
        wanted=sum(scaling[name]["replicas"] for name in deployments if name in scaling),
        starting=states.count("starting"),
        ready=states.count("ready"),
        waiting=sum(waiting.values()),
        running=sum(book.get("running_by_tenant", {}).values()),
        waiting_by_tenant=dict(waiting),
    )

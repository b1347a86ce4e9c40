"""`GET /metrics`: the cluster's own metrics from every Ray node, on one page.

Ray exports each node's metrics on that node; a user without a Prometheus server wants one place to look. Owns:
fetching and merging. Must not know: what the metrics mean.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable

import aiohttp
import ray

PREFIX = "ray_tribes_"
NODES_FRESH_S = 10.0
FETCH_TIMEOUT_S = 3.0
_NOISE = re.compile(r'(?:Component|NodeAddress|SessionName|Version|otel_scope_\w+)="[^"]*",?')
"""Labels that Ray adds and that say nothing here. WorkerId stays: it keeps processes' series apart."""


class MetricsPage:
    """Fetches the nodes' Prometheus pages and keeps the lines of this product."""

    def __init__(self) -> None:
        self._urls: list[str] = []
        self._urls_at_s = float("-inf")

    async def __call__(self) -> bytes:
        if time.monotonic() - self._urls_at_s > NODES_FRESH_S:
            self._urls = await asyncio.to_thread(_node_urls)
            self._urls_at_s = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            pages = await asyncio.gather(*(_fetch(session, url) for url in self._urls))
        return merge(pages).encode()


def merge(pages: Iterable[str]) -> str:
    """Samples of all pages grouped by metric, each with its HELP and TYPE once."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for page in pages:
        metric = ""
        for line in page.splitlines():
            if line.startswith("#"):
                words = line.split(" ", 3)
                metric = words[2] if len(words) > 2 else ""
                if metric.startswith(PREFIX) and line not in heads.setdefault(metric, []):
                    heads[metric].append(line)
            elif metric.startswith(PREFIX) and line.startswith(PREFIX):
                samples.setdefault(metric, []).append(_NOISE.sub("", line).replace(",}", "}"))
    lines = [line for metric in sorted(samples) for line in (*heads[metric], *samples[metric])]
    return "\n".join(lines) + "\n"


async def _fetch(session: aiohttp.ClientSession, url: str) -> str:
    try:
        async with session.get(url) as answer:
            return await answer.text() if answer.status == 200 else ""
    except (aiohttp.ClientError, TimeoutError):
        return ""  # a node that is going away; the others still answer


def _node_urls() -> list[str]:
    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"] and node.get("MetricsExportPort")
    ]

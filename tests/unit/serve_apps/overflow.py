"""A gateway whose queue refuses everything, and an upstream beside it. Role: what the tests of upstreams share."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson

from cluster.scheduling import Refusal
from tests.unit.serve_apps.harness import CHAT, chat, configuration
from tests.unit.serve_apps.porch import Porch, StubLeases
from tests.unit.serve_apps.scripted_upstream import CACHED, OUTPUT, PROMPT, Reply, ScriptedUpstream, whole
from tests.unit.serve_apps.servers import served

KEY = "sk-upstream-5e8a1f"
"""What the environment variable UPSTREAM_KEY holds in these tests (conftest.py)."""
PRICES = {"input": 10, "cached_input": 1, "output": 100}
USD = ((PROMPT - CACHED) * 10 + CACHED * 1 + OUTPUT * 100) / 1e6
FULL = Refusal("t", 429, "queue_full", "the queue is full", 7.0)


class Leases(StubLeases):
    """With a queue that says whether a replica is ready."""

    ready = True

    async def status(self) -> dict[str, Any]:
        return {"replicas": [{"state": "ready" if self.ready else "starting"}]}


def upstream(url: str, **fields: Any) -> dict[str, Any]:
    return {
        "base_url": f"{url}/v1",
        "api_key": {"env": "UPSTREAM_KEY"},
        "models": {"m": "their-m"},
        "use": "on_overload",
        "usd_per_mtok": PRICES,
        **fields,
    }


@contextlib.asynccontextmanager
async def overflowing(
    folder: Path, *replies: Reply, refusal: Refusal = FULL, ready: bool = True, house_tenants: Any = None, **fields: Any
) -> AsyncIterator[tuple[Porch, ScriptedUpstream]]:
    """A gateway whose queue refuses everything, and an upstream `up`."""
    far = ScriptedUpstream(list(replies) or [whole()])
    leases = Leases([], refusal)
    leases.ready = ready
    sections = {"tenants": house_tenants} if house_tenants else {}
    async with served(far) as url:
        config = configuration(folder, upstreams={"up": upstream(url, **fields)}, **sections)
        async with Porch(config, leases).running() as porch:
            porch.store.add_tenants({name: item.model_dump(mode="json") for name, item in porch.config.tenants.items()})
            yield porch, far


async def ask(porch: Porch, tenant: str = "default", **fields: Any) -> tuple[int, dict[str, Any], Any]:
    """Status, body and headers of a whole answer."""
    async with porch.http(tenant) as http, http.post(CHAT, json=chat(**fields)) as answer:
        return answer.status, orjson.loads(await answer.read()), answer.headers

"""Whether any replica of a model is ready, as its queue says. Owns: the latest answers. Must not know: who asks."""

from __future__ import annotations

import asyncio
import time

from serve_apps.leases import LeaseClient, RefusedError

READY_FRESH_S = 2.0


class ReadyReplicas:
    """Asks the queues, each at most every `READY_FRESH_S`."""

    def __init__(self) -> None:
        self._asked: dict[str, tuple[float, asyncio.Task[bool]]] = {}

    async def any_of(self, model: str, leases: LeaseClient) -> bool:
        known = self._asked.get(model)
        if known is None or time.monotonic() - known[0] > READY_FRESH_S:
            known = self._asked[model] = (time.monotonic(), asyncio.create_task(_any_ready(leases)))
        return await asyncio.shield(known[1])  # others wait for it, too


async def _any_ready(leases: LeaseClient) -> bool:
    try:
        return any(replica["state"] == "ready" for replica in (await leases.status())["replicas"])
    except RefusedError:  # no queue: no replica that could be had
        return False

"""Whether any replica of a model is ready, as its queue says. Owns: the latest answers. Must not know: who asks.

Each queue is asked every `READY_FRESH_S` at most, beside the requests that want to know: as long as there is an answer
younger than `READY_TRUSTED_S`, nobody waits for the next one.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from serve_apps.leases import LeaseClient, RefusedError

READY_FRESH_S = 2.0
READY_TRUSTED_S = 10.0


@dataclass(slots=True)
class _Asked:
    at_s: float
    answer: asyncio.Task[bool]
    before: _Asked | None
    """Answered already."""


class ReadyReplicas:
    """Of all models."""

    def __init__(self) -> None:
        self._asked: dict[str, _Asked] = {}

    async def any_of(self, model: str, leases: LeaseClient) -> bool:
        now_s, asked = time.monotonic(), self._asked.get(model)
        if asked is None or (asked.answer.done() and now_s - asked.at_s > READY_FRESH_S):
            if asked is not None:
                asked.before = None
            asked = self._asked[model] = _Asked(now_s, asyncio.create_task(_any_ready(leases)), asked)
        if not asked.answer.done() and asked.before is not None and now_s - asked.before.at_s <= READY_TRUSTED_S:
            asked = asked.before
        return await asyncio.shield(asked.answer)  # others wait for it, too


async def _any_ready(leases: LeaseClient) -> bool:
    try:
        return any(replica["state"] == "ready" for replica in (await leases.status())["replicas"])
    except RefusedError:  # no queue: no replica that could be had
        return False

"""Answers that were committed for another row and are copied for this one.

Role: read one record of a published part. Owns: a few parts kept in memory. Must not know: who decided to copy.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import replace

from batch_jobs.output.committed import read_results
from batch_jobs.output.part_buffer import PartSettings
from batch_jobs.output.parts import Result
from batch_jobs.storage import Storage
from batch_jobs.work.messages import Copy

_KEPT_PARTS = 16


class CommittedAnswers:
    """Used from one event loop."""

    def __init__(self, settings: PartSettings) -> None:
        self._storage = Storage(settings.output)
        self._parts: OrderedDict[str, asyncio.Future[list[Result]]] = OrderedDict()

    async def result(self, copy: Copy) -> Result:
        """The answer, marked as that of another row. Its own usage stays that row's: nothing was computed here."""
        results = await self._part(copy.part)
        return replace(results[copy.row], duplicate_of=copy.of_id)

    async def _part(self, name: str) -> list[Result]:
        if name not in self._parts:
            read = asyncio.to_thread(read_results, self._storage, name)
            self._parts[name] = asyncio.ensure_future(read)
            while len(self._parts) > _KEPT_PARTS:
                self._parts.popitem(last=False)
        self._parts.move_to_end(name)
        try:
            # Shielded: one row that is taken back must not cancel the read that others wait for.
            return await asyncio.shield(self._parts[name])
        except OSError:
            self._parts.pop(name, None)
            raise

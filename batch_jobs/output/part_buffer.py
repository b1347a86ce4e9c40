"""Finished rows of one engine on their way into a part.

Role: decide when a part is full, write it and have it published. Owns: rows between "finished" and "committed".
Must not know: engines, prompts, how the log decides.

A part is committed when it has `part_rows` rows, when its oldest row is `part_seconds` old, or as soon as the engine
has nothing left to do (else the end of a job would wait for the clock). `add` returns once the row's part is
committed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from batch_jobs.input.rows import Row
from batch_jobs.output.parts import Result, encode_part, part_name, staged_name
from batch_jobs.storage import Storage
from batch_jobs.work.commit_log import RowStat

if TYPE_CHECKING:
    import pyarrow as pa


class Publisher(Protocol):
    """The commit log as seen from one engine."""

    async def publish(self, part: str, stats: Sequence[RowStat]) -> list[str]: ...


@dataclass(frozen=True)
class PartSettings:
    """Everything about parts that is the same for all engines of a run."""

    output: str
    run_id: str
    format: str
    schema: pa.Schema
    part_rows: int
    part_seconds: float


@dataclass
class _Finished:
    row: Row
    result: Result
    committed: asyncio.Future[None]

    @property
    def stat(self) -> RowStat:
        result = self.result
        error = result.error["type"] if result.error else None
        return RowStat(self.row.id, result.prompt_tokens, result.cached_tokens, result.output_tokens, error)


class PartBuffer:
    """Used from one event loop."""

    def __init__(
        self,
        settings: PartSettings,
        engine_id: str,
        publisher: Publisher,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._engine_id = engine_id
        self._publisher = publisher
        self._clock = clock
        self._storage = Storage(settings.output)
        self._waiting: list[_Finished] = []
        self._oldest_s = 0.0
        self._number = 0
        self._writing = asyncio.Lock()

    async def add(self, row: Row, result: Result) -> None:
        """Hand over a finished row; returns when it is committed (or is somebody else's by now)."""
        finished = _Finished(row, result, asyncio.get_running_loop().create_future())
        if not self._waiting:
            self._oldest_s = self._clock()
        self._waiting.append(finished)
        if len(self._waiting) >= self._settings.part_rows:
            await self.flush()
        await finished.committed

    def due(self, idle: bool) -> bool:
        """Whether the waiting rows should be committed now; `idle`: the engine has nothing to do."""
        return bool(self._waiting) and (idle or self._clock() - self._oldest_s >= self._settings.part_seconds)

    async def flush(self) -> None:
        """Commit every waiting row. A failure reaches those who wait for the rows, not the caller."""
        async with self._writing:
            batch, self._waiting = self._waiting, []
            try:
                await self._commit(batch)
            except Exception as error:
                for finished in batch:
                    if not finished.committed.done():
                        finished.committed.set_exception(error)
            else:
                for finished in batch:
                    if not finished.committed.done():
                        finished.committed.set_result(None)

    async def _commit(self, batch: list[_Finished]) -> None:
        while batch:
            part = part_name(self._engine_id, self._number, self._settings.format)
            self._number += 1
            staged = staged_name(self._settings.run_id, part)
            await asyncio.to_thread(self._stage, staged, batch)
            refused = set(await self._publisher.publish(part, [finished.stat for finished in batch]))
            if not refused:
                return
            await asyncio.to_thread(self._storage.delete, staged)
            batch = [finished for finished in batch if finished.row.id not in refused]

    def _stage(self, staged: str, batch: list[_Finished]) -> None:
        rows = [(finished.row, finished.result) for finished in batch]
        self._storage.write(staged, encode_part(rows, self._settings.format, self._settings.schema))

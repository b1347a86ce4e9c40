"""Finished rows of one engine on their way into a part.

Role: decide when a part is full, write it and have it published. Owns: rows between "finished" and "committed".
Must not know: engines, prompts, how the ledger decides.

A part is started when it has `part_rows` rows, when its oldest row is `part_seconds` old, or as soon as the engine has
nothing left to do (else the end of a job would wait for the clock). Parts are written and published one after another
behind the engine's back: it goes on answering. `add` waits only when the output is so slow that BACKLOG_PARTS parts are
unpublished, which bounds memory. A part that cannot be written or published ends the buffer: its error is raised by
every later `add` and `flush`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from batch_jobs.input.rows import Row
from batch_jobs.output.encoding import encode_part
from batch_jobs.output.openai_lines import error_kind, openai_record
from batch_jobs.output.parts import OPENAI, Result, part_name, staged_name
from batch_jobs.reporting.stats import RowStat
from batch_jobs.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

BACKLOG_PARTS = 4


class Publisher(Protocol):
    """The ledger as seen from one engine."""

    async def publish(self, part: str, stats: Sequence[RowStat]) -> list[int]:
        """Commit a staged part, all of it; or return the numbers of the rows that this engine no longer holds."""
        ...


@dataclass(frozen=True)
class PartSettings:
    """Everything about parts that is the same for all engines of a run."""

    output: str
    run_id: str
    format: str
    schema: pa.Schema
    """Of the carried columns."""
    part_rows: int
    part_seconds: float
    output_type: pa.DataType | None = None
    """Of the answers in Parquet; None: text."""


@dataclass(frozen=True, slots=True)
class _Finished:
    number: int
    row: Row
    result: Result
    seconds: float

    def stat(self, part_format: str) -> RowStat:
        result = self.result
        error = result.error["type"] if result.error else None
        if error is not None and part_format == OPENAI:
            error = error_kind(openai_record(self.row.id, result))  # what a rerun will read from the part
        return RowStat(
            self.number,
            self.row.id,
            result.prompt_tokens,
            result.cached_tokens,
            result.output_tokens,
            error,
            self.seconds,
            result.duplicate_of is not None,
        )


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
        self._unpublished = 0
        self._number = 0
        self._writing = asyncio.Lock()  # first come, first served: parts are published in the order they were cut
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._error: Exception | None = None

    @property
    def unpublished(self) -> int:
        """Rows that were handed over and are not committed yet."""
        return self._unpublished

    async def add(self, number: int, row: Row, result: Result, seconds: float) -> None:
        """Hand over a finished row. Returns at once unless the output is far behind."""
        self._raise_error()
        if not self._waiting:
            self._oldest_s = self._clock()
        self._waiting.append(_Finished(number, row, result, seconds))
        self._unpublished += 1
        if len(self._waiting) >= self._settings.part_rows:
            self.start_flush()
        while self._unpublished > BACKLOG_PARTS * self._settings.part_rows:
            self._room.clear()
            await self._room.wait()
            self._raise_error()

    def due(self, idle: bool) -> bool:
        """Whether the waiting rows should be committed now; `idle`: the engine has nothing to do."""
        return bool(self._waiting) and (idle or self._clock() - self._oldest_s >= self._settings.part_seconds)

    def start_flush(self) -> None:
        """Begin to commit every waiting row, without waiting for it."""
        if self._waiting:
            batch, self._waiting = self._waiting, []
            task = asyncio.get_running_loop().create_task(self._publish(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def flush(self) -> None:
        """Commit every row handed over so far; raises what went wrong with any row ever."""
        self.start_flush()
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    async def _publish(self, batch: list[_Finished]) -> None:
        try:
            async with self._writing:
                self._raise_error()
                await self._commit(batch)
        except Exception as error:
            self._error = self._error or error
        else:
            self._unpublished -= len(batch)
        finally:
            self._room.set()

    async def _commit(self, batch: list[_Finished]) -> None:
        while batch:
            part = part_name(self._engine_id, self._number, self._settings.format)
            self._number += 1
            staged = staged_name(self._settings.run_id, part)
            await asyncio.to_thread(self._stage, staged, batch)
            stats = [finished.stat(self._settings.format) for finished in batch]
            refused = set(await self._publisher.publish(part, stats))
            if not refused:
                return
            await asyncio.to_thread(self._storage.delete, staged)
            kept = [finished for finished in batch if finished.number not in refused]
            if len(kept) == len(batch):
                raise RuntimeError(f"{part}: the ledger refused rows that are not in it: {sorted(refused)[:10]}")
            batch = kept

    def _stage(self, staged: str, batch: list[_Finished]) -> None:
        rows = [(finished.row, finished.result) for finished in batch]
        settings = self._settings
        self._storage.write(staged, encode_part(rows, settings.format, settings.schema, settings.output_type))

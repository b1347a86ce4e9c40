"""Results of a batch on their way to becoming final. Owns: parts, their form and their commits.

Where results wait for the end of their batch: in objects of the file store, a part for every second or 128 results,
and one row a part in the state store. Not in rows of their own: 50,000 answers of some kilobytes are some hundred
megabytes, which SQLite would copy through its log, keep in a file that never shrinks, and lock for everybody meanwhile.

A part is written first and then committed by its row, together with the bills of its lines. A crash in between leaves
an object that no row names: nobody reads it, its lines are run again, and none of them was billed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from array import array
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy.exc import SQLAlchemyError

from cluster.files import FileStore
from cluster.state.deferred_batches import Batch, BatchBook, BatchPart, Sums
from cluster.state.usage import UsageRecord
from serve_apps.deferred.runner import Answer

FOLDER = "batches"
PART_LINES = 128
PART_SECONDS = 1.0
MAX_WAITING = 4 * PART_LINES
RETRY_S = 1.0
_HTTP_OK = 200
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """One answered line: its text for the output or error file, and what it adds."""

    line: int
    text: bytes
    failed: bool
    sums: Sums
    records: tuple[UsageRecord, ...] = ()


def request_id(batch_id: str, line: int) -> str:
    """The same whenever this line is run: a bill is written once."""
    return f"{batch_id}-{line}"


def answered(batch_id: str, line: int, custom_id: str, answer: Answer) -> Result:
    """A line that got an answer, be it an error."""
    failed = answer.status != _HTTP_OK
    response = {"status_code": answer.status, "request_id": request_id(batch_id, line), "body": _json(answer.body)}
    usage = answer.usage
    sums = Sums(int(not failed), int(failed), usage.prompt_tokens, usage.cached_tokens, usage.output_tokens)
    try:
        text = _text(batch_id, line, custom_id, response, None)
    except TypeError:  # orjson reads deeper nesting than it writes
        response["body"] = answer.body.decode(errors="replace")
        text = _text(batch_id, line, custom_id, response, None)
    return Result(line, text, failed, sums, answer.records)


def unanswered(batch_id: str, line: int, custom_id: str, code: str, message: str) -> bytes:
    """The error file's line for one that got none."""
    return _text(batch_id, line, custom_id, None, {"code": code, "message": message})


def _text(
    batch_id: str, line: int, custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None
) -> bytes:
    digest = hashlib.sha256(request_id(batch_id, line).encode()).hexdigest()[:32]
    record = {"id": f"batch_req_{digest}", "custom_id": custom_id, "response": response, "error": error}
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode(errors="replace")


class Journal:
    """Gathers results of one claim of a batch and commits them part by part."""

    def __init__(self, book: BatchBook, files: FileStore, batch: Batch, next_number: int) -> None:
        self._book = book
        self._files = files
        self._batch = batch
        self._number = next_number
        self._waiting: list[Result] = []
        self._current: list[Result] = []
        """The part that is being written: the same lines however often it is tried."""
        self._tried = False
        self._write: asyncio.Future[None] | None = None
        self._full = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def add(self, result: Result) -> None:
        await self._room.wait()
        self._waiting.append(result)
        if len(self._waiting) >= PART_LINES:
            self._full.set()
        if len(self._waiting) >= MAX_WAITING:
            self._room.clear()

    async def write_forever(self) -> None:
        """Raises LostClaimError when the batch is another worker's."""
        while True:
            try:
                async with asyncio.timeout(PART_SECONDS):
                    await self._full.wait()
            except TimeoutError:
                pass
            await self.flush()

    async def flush(self) -> None:
        """Commit what waits. A store that is away is tried again; whoever bounds the claim bounds that.

        One caller at a time. When it is stopped half way, the next one goes on with the same part.
        """
        while self._current or self._waiting:
            if not self._current:
                self._current, self._waiting = self._waiting[:PART_LINES], self._waiting[PART_LINES:]
                self._room.set()
            if await self._is_written():
                self._current, self._tried = [], False
                self._number += 1
            else:
                await asyncio.sleep(RETRY_S)
        self._full.clear()

    async def _is_written(self) -> bool:
        if self._write is None:
            self._write = asyncio.ensure_future(asyncio.to_thread(self._commit, self._current, self._tried))
            self._tried = True
        try:
            # Shielded: a thread goes on when its caller is stopped, and the next caller must know how it ended.
            await asyncio.shield(self._write)
        except (SQLAlchemyError, OSError) as error:
            log.warning("cannot write results of %s (%s); trying again", self._batch.id, error)
            return False
        finally:
            if self._write.done():
                self._write = None
        return True

    def _commit(self, results: list[Result], tried: bool) -> None:
        batch_id, fence = self._batch.id, self._batch.fence
        if tried and self._book.has_part(batch_id, self._number):
            return  # the answer to the commit was lost, the commit was not
        name = f"{FOLDER}/{batch_id}/{fence:06d}-{self._number:06d}.jsonl"
        self._files.put(name, b"".join(result.text for result in results))
        lines = array("I", [2 * result.line + result.failed for result in results])
        records = [record for result in results for record in result.records]
        self._book.add_part(batch_id, fence, BatchPart(self._number, name, lines), total_of(results), records)


def total_of(results: list[Result]) -> Sums:
    parts = [result.sums for result in results]
    return Sums(*(sum(getattr(part, name) for part in parts) for name in Sums.__dataclass_fields__))

"""The end of a batch: its output and error files. Owns: which lines go where, and the order of events.

1. The files are written whole into the file store under ids made from the batch: done again, they are the same. Their
   objects are named by the claim's fence too: a worker that was frozen here and lost its batch abandons its own object,
   and not what the batch's next owner made visible meanwhile. Housekeeping finds what losers leave.
2. One transaction makes them visible, ends the batch, and forgets its parts.
3. The parts' objects are deleted; what a crash leaves, housekeeping finds.

Must not know: how lines were run.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import orjson

from batch_jobs.output import openai_lines
from cluster.files import FileStore, FileWriter
from cluster.files.store import CHUNK_BYTES
from cluster.state import UsageRecord
from cluster.state.deferred_batches import Batch, Sums
from cluster.state.deferred_files import StoredFile, object_of
from cluster.state.ids import derived_id
from cluster.vocabulary import RequestClass
from serve_apps.deferred import offline_job, results
from serve_apps.deferred.lines import Place, read_some
from serve_apps.deferred.shop import Shop
from serve_apps.gateway.apis.files import FILE_KIND

JOB = "job"
_BILLED_AT_ONCE = 1000
_WHY = {
    "cancelled": ("batch_cancelled", "This request was not run: the batch was cancelled before."),
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "completed": ("offline_job_failed", "The offline job of this batch failed too often before this request."),
}


@dataclass(frozen=True, slots=True)
class Ending:
    """What a batch ended with."""

    status: str
    files: dict[str, StoredFile]
    sums: Sums


def write_outputs(shop: Shop, batch: Batch, input_name: str) -> Ending:
    """Event 1. `batch` as it was when it began to finalize."""
    with contextlib.ExitStack() as stack:
        output = _Output(shop.files, stack, batch, "output")
        errors = _Output(shop.files, stack, batch, "error")
        tally = _Tally(shop, batch)
        for text, failed in _lines(shop, batch, tally):
            (errors if failed else output).write(text)
        tally.bill()
        missing = batch.total - tally.lines
        status = _status(batch, missing)
        if missing:
            for text in _unanswered(shop, batch, input_name, tally, status):
                errors.write(text)
        sums = replace(tally.sums(), failed=errors.lines)
    made = {"output_file_id": output.file(shop.files), "error_file_id": errors.file(shop.files)}
    return Ending(status, {column: file for column, file in made.items() if file is not None}, sums)


def drop_parts(shop: Shop, batch: Batch) -> None:
    """Event 3."""
    for folder in (results.FOLDER, offline_job.FOLDER):
        shop.files.delete_folder(f"{folder}/{batch.id}")


def _status(batch: Batch, missing: int) -> str:
    if batch.cancelling_at_s is not None:
        return "cancelled"
    assert batch.finalizing_at_s is not None
    # Only an offline job may leave lines behind before the time is over, when it has failed too often.
    late = batch.mode != JOB or batch.finalizing_at_s >= batch.expires_at_s
    return "expired" if missing and late else "completed"


class _Output:
    """A file that is made when it gets its first line."""

    def __init__(self, files: FileStore, stack: contextlib.ExitStack, batch: Batch, kind: str) -> None:
        assert batch.finalizing_at_s is not None
        self._files = files
        self._stack = stack
        self._batch = batch
        self._kind = kind
        self._id = derived_id(FILE_KIND, batch.finalizing_at_s, batch.id, kind)
        self._object = object_of(f"{self._id}-{batch.fence:06d}")
        self._writer: FileWriter | None = None
        self.lines = 0

    def write(self, text: bytes) -> None:
        if self._writer is None:
            self._writer = self._stack.enter_context(self._files.writing(self._object))
        self._writer.write(text)
        self.lines += 1

    def file(self, files: FileStore) -> StoredFile | None:
        if self._writer is None:
            return None
        batch = self._batch
        assert batch.finalizing_at_s is not None
        life_s = batch.output_expires_after_s
        return StoredFile(
            id=self._id,
            tenant=batch.tenant,
            purpose="batch_output",
            filename=f"{batch.id}_{self._kind}.jsonl",
            object_name=self._object,
            size_bytes=self._writer.size_bytes,
            created_at_s=batch.finalizing_at_s,
            expires_at_s=None if life_s is None else batch.finalizing_at_s + life_s,
        )


class _Tally:
    """Which lines have results, and what they add up to."""

    def __init__(self, shop: Shop, batch: Batch) -> None:
        self._shop = shop
        self._batch = batch
        self.lines = self.completed = 0
        self.numbers: set[int] = set()
        self.custom_ids: set[str] = set()
        self._tokens = [0, 0, 0]
        self._records: list[UsageRecord] = []

    def add_line(self, number: int, failed: bool) -> None:
        self.lines += 1
        self.completed += not failed
        self.numbers.add(number)

    def add_record(self, text: bytes) -> bool:
        """A line of an offline job, which billed nobody; says whether it failed."""
        record = orjson.loads(text)
        self.custom_ids.add(record["custom_id"])
        failed = openai_lines.error_kind(record) is not None
        tokens = (0, 0, 0) if openai_lines.is_duplicate(record) else openai_lines.usage(record)
        self._tokens = [have + more for have, more in zip(self._tokens, tokens, strict=True)]
        self.lines += 1
        self.completed += not failed
        self._records.append(self._record(record["custom_id"], tokens, failed))
        if len(self._records) >= _BILLED_AT_ONCE:
            self.bill()
        return failed

    def bill(self) -> None:
        """Written before the batch ends; written again after a crash, they change nothing."""
        records, self._records = self._records, []
        self._shop.store.add_usage(records)

    def sums(self) -> Sums:
        batch = self._batch
        if batch.mode == JOB:
            return Sums(self.completed, 0, *self._tokens)
        return Sums(self.completed, 0, batch.input_tokens, batch.cached_tokens, batch.output_tokens)

    def _record(self, custom_id: str, tokens: tuple[int, int, int], failed: bool) -> UsageRecord:
        batch = self._batch
        assert batch.model is not None and batch.finalizing_at_s is not None
        return UsageRecord(
            request_id=derived_id("job_", batch.created_at_s, batch.id, custom_id),
            tenant=batch.tenant,
            key_id=batch.key_id,
            model=batch.model,
            deployment=next(iter(self._shop.config.offline_deployments(batch.model)), "offline"),
            request_class=RequestClass.OFFLINE.value,
            prompt_tokens=tokens[0],
            cached_tokens=tokens[1],
            output_tokens=tokens[2],
            queue_wait_s=0.0,
            ttft_s=None,
            duration_s=0.0,
            status=500 if failed else 200,
            finished_at_s=batch.finalizing_at_s,
        )


def _lines(shop: Shop, batch: Batch, tally: _Tally) -> Iterator[tuple[bytes, bool]]:
    """Final lines and whether they are errors."""
    if batch.mode == JOB:
        for text in offline_job.committed_lines(offline_job.folder_of(shop, batch)):
            yield text, tally.add_record(text)
        return
    for part in shop.deferred.batches.parts(batch.id):
        with shop.files.open(part.object_name) as source:
            for code, text in zip(part.lines, io.BufferedReader(source, CHUNK_BYTES), strict=True):
                tally.add_line(code // 2, bool(code % 2))
                yield text, bool(code % 2)


def _unanswered(shop: Shop, batch: Batch, input_name: str, tally: _Tally, status: str) -> Iterator[bytes]:
    place: Place | None = Place()
    while place is not None:
        items, place = read_some(shop.files, input_name, place, tally.numbers)
        for item in itertools.filterfalse(lambda item: item.custom_id in tally.custom_ids, items):
            yield results.unanswered(batch.id, item.line, item.custom_id, *_WHY[status])

"""What the parts in the output folder hold.

Role: read back what earlier runs left. Owns: the one way in which a part is read. Must not know: engines, Ray, who
may commit.

Rows are handed out one by one: no more than a few parts are in memory, and the ids of all rows as 16 bytes each. On
object stores many parts are read at once, or a job of 80,000 parts would wait an hour for round trips.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, NamedTuple

import orjson

from batch_jobs.errors import JobRefused
from batch_jobs.input.id_set import IdSet
from batch_jobs.input.rows import ID_COLUMN
from batch_jobs.output import openai_lines
from batch_jobs.output.parts import OPENAI, PARQUET, Result, Totals, format_of, is_part
from batch_jobs.storage import Storage

_READ_BYTES = 4 << 20
_RESULT_FIELDS = tuple(field.name for field in fields(Result))
_COLUMNS = ("prompt_tokens", "cached_tokens", "output_tokens")


class CommittedRow(NamedTuple):
    """One row of a part, without its content."""

    id: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    error: str | None
    duplicate: bool


def committed(storage: Storage, on_part: Callable[[str, Totals], None] | None = None) -> tuple[IdSet, Totals]:
    """Ids and sums of all committed rows, and of each part to `on_part`. Raises JobRefused as `read_committed` does."""
    totals = Totals()

    def ids() -> Iterator[str]:
        nonlocal totals
        for name, rows in _read_parts(storage):
            of_part = Totals()
            for row in rows:
                of_part.add(*row[1:])
                yield row.id
            totals = totals.plus(of_part)
            if on_part is not None:
                on_part(name, of_part)

    return IdSet(ids()), totals


def read_committed(storage: Storage) -> Iterator[CommittedRow]:
    """Every committed row. Raises JobRefused for a damaged part rather than doing its rows twice."""
    for _, rows in _read_parts(storage):
        yield from rows


def _read_parts(storage: Storage) -> Iterator[tuple[str, list[CommittedRow]]]:
    names = part_names(storage)
    yield from zip(names, storage.map(lambda name: part_rows(storage, name), names), strict=True)


def part_names(storage: Storage) -> list[str]:
    return [name for name in storage.names() if is_part(name)]


def part_rows(storage: Storage, name: str) -> list[CommittedRow]:
    """The rows of one part, in its order."""
    with _naming(storage, name), storage.open_input(name) as source:
        if format_of(name) == PARQUET:
            return list(_parquet_rows(source))
        parse = _openai_row if format_of(name) == OPENAI else _jsonl_row
        return [parse(record) for record in _records(source)]


def read_results(storage: Storage, name: str) -> list[Result]:
    """The answers in one part, in its order."""
    with _naming(storage, name), storage.open_input(name) as source:
        if format_of(name) == PARQUET:
            return _parquet_results(source)
        parse = openai_lines.result_of if format_of(name) == OPENAI else _jsonl_result
        return [parse(record) for record in _records(source)]


@contextlib.contextmanager
def _naming(storage: Storage, name: str) -> Iterator[None]:
    """Whatever a damaged part does to its reader becomes a refusal that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise JobRefused(
            f"output {storage.shown}: {name} cannot be read ({error}). Restore it, or delete it to do its rows again."
        ) from error


def _records(source: Any) -> Iterator[dict[str, Any]]:
    return map(orjson.loads, io.BufferedReader(source, _READ_BYTES))


def _jsonl_result(record: dict[str, Any]) -> Result:
    return Result(**{name: record[name] for name in _RESULT_FIELDS})


def _jsonl_row(record: dict[str, Any]) -> CommittedRow:
    prompt_tokens, cached_tokens, output_tokens = (record[name] for name in _COLUMNS)
    kind = record["error"]["type"] if record["error"] else None
    duplicate = record["duplicate_of"] is not None
    return CommittedRow(record[ID_COLUMN], prompt_tokens, cached_tokens, output_tokens, kind, duplicate)


def _openai_row(record: dict[str, Any]) -> CommittedRow:
    duplicate = openai_lines.is_duplicate(record)
    return CommittedRow(record["custom_id"], *openai_lines.usage(record), openai_lines.error_kind(record), duplicate)


def _parquet_rows(source: Any) -> Iterator[CommittedRow]:
    import pyarrow.parquet as pq

    wanted = [ID_COLUMN, *_COLUMNS, "error.type", "duplicate_of"]
    for batch in pq.ParquetFile(source).iter_batches(columns=wanted):
        ids, tokens = batch.column(ID_COLUMN).to_pylist(), [batch.column(name).to_pylist() for name in _COLUMNS]
        kinds = [problem and problem["type"] for problem in batch.column("error").to_pylist()]
        duplicates = batch.column("duplicate_of").is_valid().to_pylist()
        yield from map(CommittedRow, ids, *tokens, kinds, duplicates)


def _parquet_results(source: Any) -> list[Result]:
    import pyarrow.parquet as pq

    records = pq.ParquetFile(source).read(columns=list(_RESULT_FIELDS)).to_pylist()
    for record in records:
        if record["tool_calls"] is not None:
            record["tool_calls"] = orjson.loads(record["tool_calls"])
    return [Result(**record) for record in records]

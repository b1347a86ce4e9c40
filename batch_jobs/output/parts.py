"""The output folder: its names, the form of a part, and what has been committed so far.

Role: encode finished rows and read back what earlier runs left. Owns: the layout below.
Must not know: engines, Ray, who may commit (that is commit_log).

    part-<engine>-<n>.jsonl|parquet   committed rows; never changed once they have this name
    report.json, done.json            results of the last run; done.json exists when every row is committed
    _job.json, _lock.json             whose output this is; who writes to it now
    _staging/<run>/...                parts not committed yet; never read
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from batch_jobs.errors import JobRefused
from batch_jobs.input.columns import json_default, to_arrow
from batch_jobs.input.rows import ID_COLUMN, Row
from batch_jobs.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

STAGING = "_staging"
JOB_FILE = "_job.json"
LOCK_FILE = "_lock.json"
REPORT_FILE = "report.json"
DONE_FILE = "done.json"
PART_PREFIX = "part-"
PART_FORMATS = ("jsonl", "parquet")


@dataclass(frozen=True)
class Result:
    """What became of one row. Exactly one of `output` and `error` is set."""

    output: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    error: dict[str, str] | None = None


@dataclass
class Totals:
    """Sums over rows."""

    rows: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def error_rows(self) -> int:
        return sum(self.errors.values())

    @property
    def ok(self) -> int:
        return self.rows - self.error_rows

    def add(self, prompt_tokens: int, cached_tokens: int, output_tokens: int, error: str | None) -> None:
        self.rows += 1
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += cached_tokens
        self.output_tokens += output_tokens
        if error is not None:
            self.errors[error] = self.errors.get(error, 0) + 1

    def plus(self, other: Totals) -> Totals:
        errors = {kind: self.errors.get(kind, 0) + other.errors.get(kind, 0) for kind in self.errors | other.errors}
        return Totals(
            self.rows + other.rows,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
            errors,
        )


def part_name(engine_id: str, number: int, part_format: str) -> str:
    return f"{PART_PREFIX}{engine_id}-{number:05d}.{part_format}"


def staged_name(run_id: str, part: str) -> str:
    return f"{STAGING}/{run_id}/{part}"


def is_part(name: str) -> bool:
    return name.startswith(PART_PREFIX) and name.endswith(tuple(f".{kind}" for kind in PART_FORMATS))


def encode_part(rows: Sequence[tuple[Row, Result]], part_format: str, schema: pa.Schema) -> bytes:
    """A whole part. `schema` is that of the carried columns (see columns.py); JSONL does not need it."""
    if part_format == "jsonl":
        return b"".join(
            orjson.dumps(_record(row, result), default=json_default, option=orjson.OPT_APPEND_NEWLINE)
            for row, result in rows
        )
    return _encode_parquet(rows, schema)


def _record(row: Row, result: Result) -> dict[str, Any]:
    return {ID_COLUMN: row.id} | {k: v for k, v in row.columns.items() if k != ID_COLUMN} | asdict(result)


def _encode_parquet(rows: Sequence[tuple[Row, Result]], schema: pa.Schema) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    error = pa.struct([("type", pa.string()), ("message", pa.string())])
    columns = {ID_COLUMN: pa.array([row.id for row, _ in rows], type=pa.string())}
    for column in schema:
        columns[column.name] = to_arrow([row.columns.get(column.name) for row, _ in rows], column.type)
    results = [result for _, result in rows]
    columns["output"] = pa.array([result.output for result in results], type=pa.string())
    columns["finish_reason"] = pa.array([result.finish_reason for result in results], type=pa.string())
    for name in ("prompt_tokens", "output_tokens", "cached_tokens"):
        columns[name] = pa.array([getattr(result, name) for result in results], type=pa.int64())
    columns["error"] = pa.array([result.error for result in results], type=error)
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


@dataclass
class Committed:
    """What the parts in the output folder hold."""

    ids: set[str] = field(default_factory=set)
    totals: Totals = field(default_factory=Totals)


def read_committed(storage: Storage) -> Committed:
    """Ids and sums of all committed parts. Raises JobRefused for a damaged part rather than doing its rows twice."""
    committed = Committed()
    for name in filter(is_part, storage.names()):
        try:
            records = _part_records(name, storage.read(name))
        except (OSError, ValueError, KeyError) as error:
            raise JobRefused(
                f"output {storage.location}: {name} cannot be read ({error}). "
                "Restore it, or delete it to do its rows again."
            ) from error
        for record in records:
            problem = record["error"]
            committed.ids.add(record[ID_COLUMN])
            committed.totals.add(
                record["prompt_tokens"],
                record["cached_tokens"],
                record["output_tokens"],
                problem["type"] if problem else None,
            )
    return committed


def _part_records(name: str, data: bytes) -> list[dict[str, Any]]:
    if name.endswith(".jsonl"):
        return [orjson.loads(line) for line in data.splitlines() if line]
    import pyarrow.parquet as pq

    names = [ID_COLUMN, "prompt_tokens", "cached_tokens", "output_tokens", "error"]
    records: list[dict[str, Any]] = pq.read_table(io.BytesIO(data), columns=names).to_pylist()
    return records

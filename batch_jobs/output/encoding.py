"""The bytes of a part.

Role: finished rows as JSONL, Parquet or OpenAI batch lines. Owns: the columns of a part and their types.
Must not know: files, engines, who may commit.

Every part of a job has the same columns, whatever its rows are: a Parquet part of error rows alone has the types of the
others, and a JSONL row has every key. What UTF-8 or JSON cannot carry (half a surrogate pair in a row that some tool
cut, an integer of more than 64 bits) is replaced rather than allowed to fail the part: its other rows were paid for.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson

from batch_jobs.input.columns import json_default, to_arrow
from batch_jobs.input.rows import ID_COLUMN, Row
from batch_jobs.input.spec import Task
from batch_jobs.output.openai_lines import openai_record
from batch_jobs.output.parts import JSONL, OPENAI, Result

if TYPE_CHECKING:
    import pyarrow as pa

TOKEN_COLUMNS = ("prompt_tokens", "output_tokens", "cached_tokens")
_JSON_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
_LARGEST, _SMALLEST = 2**64 - 1, -(2**63)

Finished = Sequence[tuple[Row, Result]]


def output_type(task: Task, several: bool) -> pa.DataType:
    """The type of a job's `output` column in Parquet; `several`: more than one prompt or answer a row."""
    import pyarrow as pa

    one = {
        Task.GENERATE: pa.string(),
        Task.EMBED: pa.list_(pa.float32()),
        Task.CLASSIFY: pa.list_(pa.float32()),
        Task.SCORE: pa.float64(),
    }[task]
    return pa.list_(one) if several else one


def encode_part(rows: Finished, part_format: str, schema: pa.Schema, output: pa.DataType | None = None) -> bytes:
    """A whole part. `schema` has the carried columns (columns.py), `output` the answers' type (None: text)."""
    try:
        return _encode(rows, part_format, schema, output)
    except (TypeError, ValueError):
        # TypeError is orjson's, UnicodeEncodeError (a ValueError) Arrow's. Looking at every string of every row in
        # case one is broken would cost more than doing the rare part twice.
        return _encode([(_clean_row(row), _clean_result(result)) for row, result in rows], part_format, schema, output)


def _encode(rows: Finished, part_format: str, schema: pa.Schema, output: pa.DataType | None) -> bytes:
    if part_format == OPENAI:
        return b"".join(_line(openai_record(row.id, result)) for row, result in rows)
    if part_format == JSONL:
        return b"".join(_line(_record(row, result)) for row, result in rows)
    return _encode_parquet(rows, schema, output)


def _line(record: dict[str, Any]) -> bytes:
    return orjson.dumps(record, default=json_default, option=_JSON_OPTIONS)


def _record(row: Row, result: Result) -> dict[str, Any]:
    carried = {name: value for name, value in row.columns.items() if name != ID_COLUMN}
    return {ID_COLUMN: row.id} | carried | vars(result) | {"error": _short_error(result)}


def _short_error(result: Result) -> dict[str, Any] | None:
    return {key: result.error[key] for key in ("type", "message")} if result.error else None


def _encode_parquet(rows: Finished, schema: pa.Schema, output: pa.DataType | None) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    results = [result for _, result in rows]
    text = pa.string()
    answer = output or text
    columns = {ID_COLUMN: pa.array([row.id for row, _ in rows], type=text)}
    for column in schema:
        columns[column.name] = to_arrow([row.columns.get(column.name) for row, _ in rows], column.type)
    columns["output"] = to_arrow([_fit(result.output, answer) for result in results], answer)
    columns["finish_reason"] = pa.array([result.finish_reason for result in results], type=text)
    columns["tool_calls"] = to_arrow([result.tool_calls for result in results], text)
    columns["label"] = pa.array([result.label for result in results], type=text)
    for name in TOKEN_COLUMNS:
        columns[name] = pa.array([getattr(result, name) for result in results], type=pa.int64())
    columns["duplicate_of"] = pa.array([result.duplicate_of for result in results], type=text)
    error = pa.struct([("type", text), ("message", text)])
    columns["error"] = pa.array([_short_error(result) for result in results], type=error)
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def _fit(value: Any, kind: pa.DataType) -> Any:
    """One answer in a column of lists becomes a list of one: a row may ask for fewer answers than its job."""
    import pyarrow as pa

    if value is None or not pa.types.is_list(kind):
        return value
    if not isinstance(value, list):
        return [value]
    nested = pa.types.is_list(kind.value_type) and not any(isinstance(item, list) for item in value)
    return [value] if nested and value else value


def _clean_row(row: Row) -> Row:
    return Row(_clean(row.id), _clean(row.columns))


def _clean_result(result: Result) -> Result:
    return Result(**_clean(vars(result)))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, int) and not _SMALLEST <= value <= _LARGEST:
        return str(value)
    return value

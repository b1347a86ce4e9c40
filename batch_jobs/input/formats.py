"""Where each record of a JSONL or CSV file starts, and what one record says.

Role: split files into records that can be read again on their own. Owns: the syntax of JSONL and CSV.
Must not know: prompts, ids, jobs.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import orjson

from batch_jobs.errors import RowError, RowErrorKind

_BOM = b"\xef\xbb\xbf"
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default of 128 KiB is shorter than many prompts


class Record(NamedTuple):
    """`number` is what an editor shows: the line of a JSONL file, the data record of a CSV file, from 1."""

    number: int
    start: int
    data: bytes


def jsonl_records(stream: Iterable[bytes]) -> Iterator[Record]:
    """Non-blank lines."""
    start = 0
    for number, line in enumerate(stream, 1):
        if line.strip():
            yield Record(number, start, line)
        start += len(line)


def csv_records(stream: Iterable[bytes]) -> Iterator[Record]:
    """Records after the header; a quoted field may span lines, so the csv module decides where a record ends.

    The header comes first, as record 0.
    """
    taken: list[bytes] = []

    def lines() -> Iterator[str]:
        for line in stream:
            taken.append(line)
            yield line.decode("utf-8", errors="replace")

    start = 0
    number = 0
    for fields in csv.reader(lines()):
        data = b"".join(taken)
        taken.clear()
        if fields:
            yield Record(number, start, data)
            number += 1
        start += len(data)


def parse_json(data: bytes) -> dict[str, Any]:
    """One JSONL line."""
    try:
        value = orjson.loads(data.removeprefix(_BOM))
    except orjson.JSONDecodeError as error:
        raise RowError(RowErrorKind.INVALID_JSON, f"the line is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise RowError(RowErrorKind.INVALID_JSON, f"the line must be a JSON object, got {type(value).__name__}")
    return value


def parse_csv_header(data: bytes) -> list[str]:
    return next(csv.reader([data.removeprefix(_BOM).decode("utf-8", errors="replace")]), [])


def parse_csv(data: bytes, header: list[str]) -> dict[str, Any]:
    """One CSV record; an empty field means that the row does not have that value."""
    text = data.decode("utf-8", errors="replace")
    fields = next(csv.reader(text.splitlines(keepends=True)), [])
    return {name: value or None for name, value in zip(header, fields, strict=False)}

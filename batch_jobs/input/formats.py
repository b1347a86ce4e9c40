"""Where each record of a JSONL or CSV file starts, and what one record says.

Role: split files into records that can be read again on their own. Owns: the syntax of JSONL and CSV.
Must not know: prompts, ids, jobs.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
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
    fields: list[str] | None = None
    """Of a CSV record; None where it is none."""


def jsonl_records(stream: Iterable[bytes], first: int = 1) -> Iterator[Record]:
    """Non-blank lines. `first` is the number of the stream's first line."""
    start = 0
    for number, line in enumerate(stream, first):
        if line.strip():
            yield Record(number, start, line)
        start += len(line)


def csv_records(stream: Iterable[bytes], first: int = 0) -> Iterator[Record]:
    """Non-blank records; a quoted field may span lines, so the csv module decides where a record ends.

    A file's header comes first, as record 0. `first` is the number of the stream's first record.
    """
    taken: list[bytes] = []

    def lines() -> Iterator[str]:
        for line in stream:
            taken.append(line)
            yield line.decode("utf-8", errors="replace")

    start = 0
    number = first
    reader = csv.reader(lines())
    while True:
        fields: list[str] | None = None
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:  # a carriage return of its own outside quotes; the reader goes on with the next line
            pass
        data = b"".join(taken)
        taken.clear()
        if fields != []:
            yield Record(number, start, data, fields)
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
    try:
        return next(csv.reader([data.removeprefix(_BOM).decode("utf-8", errors="replace")]), [])
    except csv.Error as error:
        raise ValueError(f"the header is not one line of CSV ({error}); end lines with a newline") from error


def parse_csv(record: Record, header: Sequence[str]) -> dict[str, Any]:
    """One CSV record; an empty field means that the row does not have that value."""
    fields = record.fields
    if fields is None:
        raise RowError(RowErrorKind.INVALID_CSV, "the record has a carriage return outside quotes")
    if any(fields[len(header) :]):
        # An unquoted comma: asking for the half before it would be an answer to another question.
        raise RowError(RowErrorKind.INVALID_CSV, f"the record has {len(fields)} fields and the header {len(header)}")
    return {name: value or None for name, value in zip(header, fields, strict=False)}

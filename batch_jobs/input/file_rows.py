"""The rows of one input file: ids and columns, for the scan and for the readers alike.

Role: from a file's records to rows. Owns: row ids. Must not know: jobs, chunks, what prompts are.

A row's id is its `id` value if it has one (`custom_id` in an OpenAI batch file), else `<file name>:<row number>`: the
same on every rerun.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from batch_jobs.errors import RowError
from batch_jobs.input.formats import Record, csv_records, jsonl_records, parse_csv, parse_csv_header, parse_json
from batch_jobs.input.locations import InputFile, open_lines
from batch_jobs.input.rows import Row, given_id

if TYPE_CHECKING:
    import pyarrow.parquet as pq


def csv_header(file: InputFile) -> tuple[tuple[str, ...], bytes]:
    """The column names of a CSV file and the bytes that they stand in."""
    with open_lines(file) as stream:
        first = next(csv_records(stream), None)
    return (tuple(parse_csv_header(first.data)), first.data) if first else ((), b"")


def text_records(file: InputFile, stream: Iterable[bytes]) -> Iterator[Record]:
    """The data records of a whole JSONL or CSV file."""
    if file.format == "jsonl":
        yield from jsonl_records(stream)
    else:
        records = csv_records(stream)
        next(records, None)
        yield from records


def text_row(file: InputFile, record: Record, header: Sequence[str], id_column: str) -> Row:
    """One row of a JSONL or CSV file; one that cannot be read carries its problem."""
    try:
        columns = parse_csv(record, header) if file.format == "csv" else parse_json(record.data)
    except RowError as problem:
        return Row(_position_id(file, record.number), {}, problem)
    return named_row(file, record.number, columns, id_column)


def named_row(file: InputFile, number: int, columns: dict[str, Any], id_column: str) -> Row:
    """A row by its columns; `number` counts from 1 in the file."""
    try:
        row_id = given_id(columns, id_column)
    except RowError as problem:
        return Row(_position_id(file, number), columns, problem)
    return Row(row_id or _position_id(file, number), columns)


def _position_id(file: InputFile, number: int) -> str:
    return f"{file.name}:{number}"


def parquet_ids(file: InputFile, table: pq.ParquetFile, id_column: str) -> Iterator[str]:
    """The ids of a Parquet file, which reads no column but theirs."""
    if id_column not in table.schema_arrow.names:
        for number in range(1, table.metadata.num_rows + 1):
            yield _position_id(file, number)
        return
    number = 1
    for batch in table.iter_batches(columns=[id_column]):
        for value in batch.column(0).to_pylist():
            yield named_row(file, number, {id_column: value}, id_column).id
            number += 1


def iterate_ids(files: Iterable[InputFile], limit: int | None, id_column: str = "id") -> Iterator[str]:
    """The id of every row in order, reading the input again. For a job's own ids: `spec.id_column`."""
    left = limit
    for file in files:
        for row_id in _file_ids(file, id_column):
            if left == 0:
                return
            if left is not None:
                left -= 1
            yield row_id


def _file_ids(file: InputFile, id_column: str) -> Iterator[str]:
    if file.format == "parquet":
        import pyarrow.parquet as pq

        with file.filesystem.open_input_file(file.path) as source:
            yield from parquet_ids(file, pq.ParquetFile(source), id_column)
        return
    header = csv_header(file)[0] if file.format == "csv" else ()
    with open_lines(file) as stream:
        for record in text_records(file, stream):
            yield text_row(file, record, header, id_column).id

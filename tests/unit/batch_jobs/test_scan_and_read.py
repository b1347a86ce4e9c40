"""Ids, duplicates, digests and limits of a scan; chunks read back what the scan saw."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_jobs.errors import JobRefused
from batch_jobs.input.locations import find_inputs
from batch_jobs.input.reading import chunk_rows, make_chunks, read_chunk
from batch_jobs.input.rows import Row
from batch_jobs.input.scan import Scan, scan_inputs
from tests.support.offline_jobs import write_jsonl


def scan_of(*paths: Path, limit: int | None = None) -> Scan:
    return scan_inputs(find_inputs([str(path) for path in paths]), limit)


def rows_of(scan: Scan, done: set[str] = frozenset(), size: int = 3) -> list[Row]:  # type: ignore[assignment]
    return [row for chunk in make_chunks(scan, done, size) for row in read_chunk(chunk)]


def ids(scan: Scan) -> list[str]:
    return [row_id for file in scan.files for row_id in file.ids]


def test_jsonl_ids_are_given_or_by_line(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "in.jsonl", [{"id": "a", "prompt": "1"}, "", {"prompt": "2"}, {"id": 5, "prompt": "3"}]
    )
    scan = scan_of(path)
    assert ids(scan) == ["a", "in.jsonl:3", "5"]
    assert [(row.id, row.columns["prompt"]) for row in rows_of(scan)] == [("a", "1"), ("in.jsonl:3", "2"), ("5", "3")]


def test_bad_lines_become_rows_with_a_problem(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", ["{bad", "[1]", {"id": [1], "prompt": "x"}, {"prompt": "fine"}])
    rows = rows_of(scan_of(path))
    assert [row.id for row in rows] == [f"in.jsonl:{line}" for line in (1, 2, 3, 4)]
    assert [row.problem.kind.value if row.problem else None for row in rows] == [
        "invalid_json",
        "invalid_json",
        "invalid_id",
        None,
    ]


def test_csv_with_quotes_newlines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes('\ufeffid,prompt\r\na,"two\r\nlines, ""quoted"""\r\n,plain\r\nc,\r\n'.encode())
    scan = scan_of(path)
    assert ids(scan) == ["a", "in.csv:2", "c"]
    assert [row.columns["prompt"] for row in rows_of(scan, size=1)] == ['two\r\nlines, "quoted"', "plain", None]


@given(
    cells=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1, max_size=12
    )
)
def test_csv_records_lie_where_the_scan_says(tmp_path_factory: pytest.TempPathFactory, cells: list[str]) -> None:
    import csv

    path = tmp_path_factory.mktemp("csv") / "in.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
        writer.writerows([["prompt"], *([cell] for cell in cells)])
    assert [row.columns["prompt"] for row in rows_of(scan_of(path), size=2)] == cells


def test_parquet_keeps_types_and_reads_only_what_is_left(tmp_path: Path) -> None:
    day = datetime.date(2026, 11, 1)
    table = pa.table({"prompt": [f"p{i}" for i in range(10)], "day": [day] * 10, "raw": [b"\xff"] * 10})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=3)
    scan = scan_of(tmp_path / "in.parquet")
    done = {f"in.parquet:{i}" for i in (1, 2, 5, 10)}
    rows = rows_of(scan, done)
    assert [row.id for row in rows] == [f"in.parquet:{i}" for i in (3, 4, 6, 7, 8, 9)]
    assert [row.columns["prompt"] for row in rows] == ["p2", "p3", "p5", "p6", "p7", "p8"]
    assert rows[0].columns["day"] == day and rows[0].columns["raw"] == b"\xff"


def test_sparse_reruns_read_each_row_once(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", [{"id": f"r{i}", "prompt": "x" * i} for i in range(1, 50)])
    done = {f"r{i}" for i in range(1, 50) if i % 3}
    assert [row.id for row in rows_of(scan_of(path), done)] == [f"r{i}" for i in range(3, 50, 3)]


def test_rows_far_apart_are_not_read_together(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "prompt": "x" * 400_000} for i in range(8)]
    scan = scan_of(write_jsonl(tmp_path / "in.jsonl", rows))
    chunks = list(make_chunks(scan, {f"r{i}" for i in range(1, 7)}, 64))
    assert [chunk.ids for chunk in chunks] == [("r0",), ("r7",)]


def test_duplicates_are_refused_by_name_across_files(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"id": "twice", "prompt": "x"}, {"id": "once", "prompt": "x"}])
    write_jsonl(tmp_path / "b.jsonl", [{"id": "twice", "prompt": "x"}])
    with pytest.raises(JobRefused, match=r"more than once: 'twice'\. Rename"):
        scan_of(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the input is empty"),
        ([{"text": "x"}], r"no prompt or messages column in the input \(columns: text\)"),
        (["nonsense"], "no line is a JSON object"),
        ([{"prompt": "x", "error": 1, "output": "y"}], "columns error, output would collide"),
    ],
)
def test_inputs_that_cannot_be_a_job(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(JobRefused, match=message):
        scan_of(write_jsonl(tmp_path / "in.jsonl", rows))


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_text("nonsense, and long enough to have a footer")
    with pytest.raises(JobRefused, match=r"in\.parquet: cannot be read as parquet"):
        scan_of(tmp_path / "in.parquet")


def test_limit_and_digest(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}"} for i in range(9)]
    path = write_jsonl(tmp_path / "in.jsonl", rows)
    first = scan_of(path)
    assert scan_of(path, limit=4).row_count == 4
    assert scan_of(path).digest == first.digest
    path.write_text(path.read_text().replace("p8", "q8"))
    assert scan_of(path).digest != first.digest


def test_column_types_of_jsonl(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prompt": "x", "n": 1, "f": 1, "mixed": 1, "list": [1], "flag": True, "null": None, "big": 2**63},
        {"id": "b", "prompt": "x", "n": None, "f": 1.5, "mixed": "one", "flag": False},
    ]
    schema = scan_of(write_jsonl(tmp_path / "in.jsonl", rows)).columns.schema()
    assert {field.name: str(field.type) for field in schema} == {
        "prompt": "string", "n": "int64", "f": "double", "mixed": "string", "list": "string", "flag": "bool",
        "null": "string", "big": "string",
    }  # fmt: skip


def test_chunk_sizes() -> None:
    assert [chunk_rows(rows, 2) for rows in (1, 100, 10_000)] == [1, 6, 64]


def test_crlf_jsonl(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"".join(json.dumps({"prompt": f"p{i}"}).encode() + b"\r\n" for i in range(3)))
    assert [row.columns["prompt"] for row in rows_of(scan_of(tmp_path / "in.jsonl"), size=2)] == ["p0", "p1", "p2"]

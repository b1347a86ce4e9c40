"""Ids, duplicates, digests and limits of a scan; chunks read back what the scan saw."""

from __future__ import annotations

import datetime
import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_jobs.errors import JobFailed, JobRefused
from batch_jobs.input import chunks as chunks_module
from batch_jobs.input.asks import unpack
from batch_jobs.input.chunks import Chunks, make_blocks
from batch_jobs.input.file_rows import iterate_ids
from batch_jobs.input.id_set import IdSet
from batch_jobs.input.locations import find_inputs
from batch_jobs.input.openai_batch import holds_openai_batch
from batch_jobs.input.reading import chunk_source, prepared_rows, read_block, read_rows
from batch_jobs.input.rows import Row
from batch_jobs.input.scan import Scan, scan_inputs
from batch_jobs.input.spec import JobSpec, PromptTemplate, Task

SPEC = JobSpec(model="m")


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def scan_of(
    *paths: Path, limit: int | None = None, done: Iterable[str] = (), spec: JobSpec = SPEC, rows_per_chunk: int = 3
) -> Scan:
    """With chunks so small that every test meets several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks_module, "MAX_CHUNK_ROWS", rows_per_chunk)
        return scan_inputs(find_inputs([str(path) for path in paths]), limit, IdSet(done), spec)


def rows_of(scan: Scan) -> list[Row]:
    return [row for _, row in read_rows(scan.chunks)]


def ids(scan: Scan) -> list[str]:
    return [row.id for row in rows_of(scan)]


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
    assert [row.columns["prompt"] for row in rows_of(scan)] == ['two\r\nlines, "quoted"', "plain", None]


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
    assert [row.columns["prompt"] for row in rows_of(scan_of(path, rows_per_chunk=2))] == cells


def test_parquet_keeps_types_and_reads_only_what_is_left(tmp_path: Path) -> None:
    day = datetime.date(2026, 11, 1)
    table = pa.table({"prompt": [f"p{i}" for i in range(10)], "day": [day] * 10, "raw": [b"\xff"] * 10})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=3)
    done = {f"in.parquet:{i}" for i in (1, 2, 5, 10)}
    scan = scan_of(tmp_path / "in.parquet", done=done, rows_per_chunk=2)
    rows = rows_of(scan)
    assert [number for number, _ in read_rows(scan.chunks)] == [2, 3, 5, 6, 7, 8]
    assert [row.id for row in rows] == [f"in.parquet:{i}" for i in (3, 4, 6, 7, 8, 9)]
    assert [row.columns["prompt"] for row in rows] == ["p2", "p3", "p5", "p6", "p7", "p8"]
    assert rows[0].columns["day"] == day and rows[0].columns["raw"] == b"\xff"


def test_sparse_reruns_read_each_row_once(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", [{"id": f"r{i}", "prompt": "x" * i} for i in range(1, 50)])
    scan = scan_of(path, done={f"r{i}" for i in range(1, 50) if i % 3})
    assert ids(scan) == [f"r{i}" for i in range(3, 50, 3)]
    assert (scan.row_count, scan.pending_count) == (49, 16)
    assert scan.digest == scan_of(path).digest


def test_chunks_end_at_a_mebibyte_and_finished_ones_are_dropped(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "prompt": "x" * 400_000} for i in range(8)]
    path = write_jsonl(tmp_path / "in.jsonl", rows)
    assert [chunk.rows for chunk in scan_of(path, rows_per_chunk=64).chunks] == [3, 3, 2]
    scan = scan_of(path, done={"r0", "r3", "r4", "r5"}, rows_per_chunk=64)
    assert [(chunk.first_row, chunk.pending) for chunk in scan.chunks] == [(0, 0b110), (6, 0b11)]


def test_a_full_chunk_of_64_pending_rows_keeps_its_last_bit(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", [{"id": f"r{i}", "prompt": "x"} for i in range(130)])
    assert ids(scan_of(path, rows_per_chunk=64)) == [f"r{i}" for i in range(130)]
    assert ids(scan_of(path, done=[f"r{i}" for i in range(63)], rows_per_chunk=64))[0] == "r63"


def test_numbers_run_over_all_files_and_blank_lines_keep_their_ids(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["", {"prompt": "1"}, "", "  ", {"prompt": "2"}])
    write_jsonl(tmp_path / "b.jsonl", [{"prompt": "3"}])
    scan = scan_of(tmp_path, rows_per_chunk=1)
    assert [(number, row.id) for number, row in read_rows(scan.chunks)] == [
        (0, "a.jsonl:2"),
        (1, "a.jsonl:5"),
        (2, "b.jsonl:1"),
    ]


@given(done=st.sets(st.integers(0, 29)), limit=st.none() | st.integers(1, 40), rows_per_chunk=st.integers(1, 64))
def test_every_pending_row_is_read_once(
    tmp_path_factory: pytest.TempPathFactory, done: set[int], limit: int | None, rows_per_chunk: int
) -> None:
    folder = tmp_path_factory.mktemp("in")
    write_jsonl(folder / "a.jsonl", [{"id": f"r{i}", "prompt": "x" * i} for i in range(1, 11)])
    (folder / "b.csv").write_text("id,prompt\n" + "".join(f'r{i},"{i}\n{i}"\n' for i in range(11, 21)))
    table = pa.table({"id": [f"r{i}" for i in range(21, 31)], "prompt": ["x"] * 10})
    pq.write_table(table, folder / "c.parquet", row_group_size=4)
    files = find_inputs([str(folder)])
    every = list(iterate_ids(files, limit))
    assert every == [f"r{i}" for i in range(1, 31)][:limit]
    scan = scan_of(folder, limit=limit, done={f"r{i}" for i in done}, rows_per_chunk=rows_per_chunk)
    pending = [(number, row_id) for number, row_id in enumerate(every) if int(row_id[1:]) not in done]
    assert [(number, row.id) for number, row in read_rows(scan.chunks)] == pending
    assert (scan.row_count, scan.pending_count) == (len(every), len(pending))


def test_an_input_that_changed_after_the_scan_fails_the_job(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"p{i}"} for i in range(9)])
    scan = scan_of(path)
    path.write_text("short\n")
    with pytest.raises(JobFailed, match=r"in\.jsonl changed while the job ran: 1 rows where 3 were"):
        rows_of(scan)


def test_blocks_hold_prepared_rows_in_order(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", [{"id": f"r{i}", "prompt": f"p{i}"} for i in range(20)] + ["{bad"])
    scan = scan_of(path, done=["r4"])
    blocks = make_blocks(scan.chunks, 6)
    assert [sum(chunk.pending_rows for chunk in block) for block in blocks] == [5, 6, 6, 3]
    rows = [row for block in blocks for row in prepared_rows(read_block(pickle.loads(pickle.dumps(block)), SPEC))]
    assert [row.number for row in rows] == [number for number in range(21) if number != 4]
    row, asks = unpack(rows[0].payload)
    assert (row.id, rows[0].prefix) == ("r0", "p0")
    assert [(ask.path, ask.body["prompt"]) for ask in asks] == [("/v1/completions", "p0")]
    bad, asks = unpack(rows[-1].payload)
    assert bad.problem is not None and asks == []


def test_a_block_is_bounded_in_bytes_and_pickles_only_its_files(tmp_path: Path) -> None:
    for name in "abcd":
        write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": "x" * (5 << 20)}])
    blocks = make_blocks(scan_of(tmp_path).chunks)
    assert [len(block) for block in blocks] == [1, 1, 1, 1]
    again = pickle.loads(pickle.dumps(blocks[2]))
    assert isinstance(again, Chunks)
    assert [chunk.source.file.name for chunk in again] == ["c.jsonl"]
    assert len(again._sources) == 1


def test_read_tasks_are_one_per_block(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"p{i}"} for i in range(9)])
    source = chunk_source(make_blocks(scan_of(path).chunks, 6), SPEC)
    tasks = source.get_read_tasks(1)
    assert [task.metadata.num_rows for task in tasks] == [6, 3]
    assert [row.number for task in tasks for table in task() for row in prepared_rows(table)] == list(range(9))


def test_a_chunk_costs_the_driver_some_dozen_bytes(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"p{i}"} for i in range(6400)])
    chunks = scan_of(path, rows_per_chunk=64).chunks
    assert len(chunks) == 100
    assert chunks._table.nbytes == 100 * 56


def test_duplicates_are_refused_by_name_across_files(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"id": "twice", "prompt": "x"}, {"id": "once", "prompt": "x"}])
    write_jsonl(tmp_path / "b.jsonl", [{"id": "twice", "prompt": "x"}])
    with pytest.raises(JobRefused, match=r"more than once: 'twice'\. Rename"):
        scan_of(tmp_path)


def test_only_five_doubled_ids_are_named(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "prompt": "x"} for i in range(20)]
    path = write_jsonl(tmp_path / "in.jsonl", rows + rows[3:10] + rows[3:4])
    with pytest.raises(JobRefused, match=r"once: 'r3', 'r4', 'r5', 'r6', 'r7' and 2 more\."):
        scan_of(path)


def test_a_given_id_may_not_equal_a_position(tmp_path: Path) -> None:
    with pytest.raises(JobRefused, match=r"'in\.jsonl:2'"):
        scan_of(write_jsonl(tmp_path / "in.jsonl", [{"id": "in.jsonl:2", "prompt": "x"}, {"prompt": "y"}]))


def templates(**sources: str) -> tuple[PromptTemplate, ...]:
    return tuple(PromptTemplate(name, source) for name, source in sources.items())


@pytest.mark.parametrize(
    ("rows", "spec", "message"),
    [
        ([], SPEC, "the input is empty"),
        ([{"text": "x"}], SPEC, r"no prompt, messages or prompts column .*columns: text.*--prompt '\{\{ text \}\}'"),
        (["nonsense"], SPEC, "no line is a JSON object"),
        ([{"prompt": "x", "error": 1, "output": "y"}], SPEC, "columns error, output would collide"),
        ([{"prompt": "x", "label": 1}], SPEC, "columns label would collide"),
        ([{"text_1": "x", "b": 1}], JobSpec(task=Task.SCORE), r"no text_2 column in the input \(columns: text_1, b\)"),
        (
            [{"text": "x"}],
            JobSpec(prompts=templates(p="{{ txt }}")),
            r"wrong column name: .* p uses txt.*columns: text",
        ),
        ([{"text": "x"}], JobSpec(prompts=templates(p="{{ text")), "template p: line 1"),
        ([{"text": "x"}], JobSpec(prompts=templates(p="{{ text | nofilter }}")), "template p: .*nofilter"),
        ([{"prompt": "x"}], JobSpec(system="{{ tone }}"), "wrong column name: template system uses tone"),
        ([{"prompt": "x"}], JobSpec(openai_batch=True), "need custom_id, url, body"),
    ],
)
def test_inputs_that_cannot_be_a_job(tmp_path: Path, rows: list[Any], spec: JobSpec, message: str) -> None:
    with pytest.raises(JobRefused, match=message):
        scan_of(write_jsonl(tmp_path / "in.jsonl", rows), spec=spec)


def test_a_template_may_name_columns_that_only_some_rows_have(tmp_path: Path) -> None:
    rows = [{"a": "x"}, {"b": "y"}]
    spec = JobSpec(prompts=templates(p="{% for i in range(2) %}{{ a | default(row['b']) }}{{ b }}{% endfor %}"))
    assert scan_of(write_jsonl(tmp_path / "in.jsonl", rows), spec=spec).row_count == 2


def test_openai_batch_files_have_ids_of_their_own(tmp_path: Path) -> None:
    request = {"method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}
    path = write_jsonl(tmp_path / "in.jsonl", ["{bad", {"custom_id": "a", "id": "no"} | request, request])
    files = find_inputs([str(path)])
    assert holds_openai_batch(files)
    spec = JobSpec(model="m", openai_batch=True)
    scan = scan_of(path, spec=spec)
    expected = ["in.jsonl:1", "a", "in.jsonl:3"]
    assert [row.id for _, row in read_rows(scan.chunks, spec.id_column)] == expected
    assert list(iterate_ids(files, None, spec.id_column)) == expected
    with pytest.raises(JobRefused, match="custom_ids must be unique"):
        scan_of(write_jsonl(tmp_path / "two.jsonl", [{"custom_id": "a"} | request] * 2), spec=spec)


@pytest.mark.parametrize("row", [{"prompt": "x"}, {"custom_id": "a", "body": {}}])
def test_other_jsonl_is_no_openai_batch(tmp_path: Path, row: dict[str, Any]) -> None:
    assert not holds_openai_batch(find_inputs([str(write_jsonl(tmp_path / "in.jsonl", [row]))]))


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


def test_csv_records_that_are_broken_become_error_rows(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"id,prompt\na,fine\nb,two,fields\nc,lone\rreturn\nd,also \xe2\x80\xa8fine\ne,trailing,\n")
    rows = rows_of(scan_of(path))
    assert [row.id for row in rows] == ["a", "in.csv:2", "in.csv:3", "d", "e"]
    assert [row.problem.kind.value if row.problem else row.columns["prompt"] for row in rows] == [
        "fine",
        "invalid_csv",
        "invalid_csv",
        "also \u2028fine",
        "trailing",
    ]


def test_a_csv_header_of_one_long_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b"id,prompt\ra,old line ends\r")
    with pytest.raises(JobRefused, match=r"in\.csv: cannot be read as csv: the header"):
        scan_of(tmp_path / "in.csv")


def test_crlf_jsonl(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"".join(json.dumps({"prompt": f"p{i}"}).encode() + b"\r\n" for i in range(3)))
    assert [row.columns["prompt"] for row in rows_of(scan_of(tmp_path / "in.jsonl"))] == ["p0", "p1", "p2"]

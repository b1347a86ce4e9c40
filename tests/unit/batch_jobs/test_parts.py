"""Parts: their form in every format, and that they are read back as they were written."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_jobs.errors import JobRefused
from batch_jobs.input.rows import Row
from batch_jobs.input.spec import Task
from batch_jobs.output.committed import committed, read_committed, read_results
from batch_jobs.output.encoding import encode_part, output_type
from batch_jobs.output.parts import PART_FORMATS, STAGING, Result, Totals, format_of, is_part, part_name
from batch_jobs.storage import Storage

DAY = datetime.date(2026, 11, 1)
BAD = {"type": "missing_prompt", "message": "prompt is empty"}
ROWS = [
    (
        Row("a", {"id": 1, "prompt": "x", "day": DAY, "tags": ["q"]}),
        Result("X", "stop", prompt_tokens=5, output_tokens=2, cached_tokens=1),
    ),
    (Row("b", {"prompt": None, "day": None, "tags": "text"}), Result(error=BAD)),
]
SCHEMA = pa.schema([("prompt", pa.string()), ("day", pa.date32()), ("tags", pa.string())])
NOTHING = pa.schema([])
CALLS = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
BODY = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
                                 "prompt_tokens_details": {"cached_tokens": 4}}}  # fmt: skip


def test_jsonl_part() -> None:
    first, second = (orjson.loads(line) for line in encode_part(ROWS, "jsonl", SCHEMA).splitlines())
    assert first == {
        "id": "a", "prompt": "x", "day": "2026-11-01", "tags": ["q"], "output": "X", "finish_reason": "stop",
        "tool_calls": None, "label": None, "prompt_tokens": 5, "output_tokens": 2, "cached_tokens": 1,
        "duplicate_of": None, "error": None,
    }  # fmt: skip
    assert second["id"] == "b" and second["output"] is None and second["error"] == BAD
    assert second.keys() >= first.keys(), "a reader must find every column in every row"


def test_parquet_part_keeps_types_and_one_schema() -> None:
    table = pq.read_table(io.BytesIO(encode_part(ROWS, "parquet", SCHEMA)))
    assert table.column_names[:2] == ["id", "prompt"] and table.schema.field("day").type == pa.date32()
    assert table.column("tags").to_pylist() == ['["q"]', "text"]
    assert table.column("error").to_pylist() == [None, BAD]
    lonely = pq.read_table(io.BytesIO(encode_part(ROWS[1:], "parquet", SCHEMA)))
    assert lonely.schema == table.schema, "a part of error rows alone must not change a column's type"


@pytest.mark.parametrize(
    ("task", "several", "output", "read_back"),
    [
        (Task.GENERATE, False, "text", "text"),
        (Task.GENERATE, False, ["asked for n=2", "alone"], '["asked for n=2","alone"]'),
        (Task.GENERATE, True, ["one", "two"], ["one", "two"]),
        (Task.GENERATE, True, "asked for n=1", ["asked for n=1"]),
        (Task.EMBED, False, [0.5, -1.0], [0.5, -1.0]),
        (Task.EMBED, True, [[0.5], [1.0]], [[0.5], [1.0]]),
        (Task.EMBED, True, [0.5, 1.0], [[0.5, 1.0]]),
        (Task.CLASSIFY, False, [0.25, 0.75], [0.25, 0.75]),
        (Task.SCORE, False, 0.1, 0.1),
    ],
)
def test_the_answer_has_the_type_of_the_job(task: Task, several: bool, output: object, read_back: object) -> None:
    rows = [(Row("a", {}), Result(output)), (Row("b", {}), Result(error=BAD))]
    kind = output_type(task, several)
    table = pq.read_table(io.BytesIO(encode_part(rows, "parquet", NOTHING, kind)))
    assert table.schema.field("output").type == kind
    assert table.column("output").to_pylist() == [read_back, None]


def test_output_types() -> None:
    assert output_type(Task.GENERATE, False) == pa.string()
    assert output_type(Task.GENERATE, True) == pa.list_(pa.string())
    assert output_type(Task.EMBED, False) == output_type(Task.CLASSIFY, False) == pa.list_(pa.float32())
    assert output_type(Task.SCORE, False) == pa.float64()


def test_tool_calls_and_labels_in_parquet() -> None:
    rows = [(Row("a", {}), Result(tool_calls=CALLS, label="spam", duplicate_of="z"))]
    (record,) = pq.read_table(io.BytesIO(encode_part(rows, "parquet", NOTHING))).to_pylist()
    assert json.loads(record["tool_calls"]) == CALLS
    assert record["label"] == "spam" and record["duplicate_of"] == "z"


def openai_lines(*rows: tuple[str, Result]) -> list[dict]:
    data = encode_part([(Row(row_id, {"body": {}}), result) for row_id, result in rows], "openai", NOTHING)
    return [json.loads(line) for line in data.splitlines()]


def test_openai_lines_are_openais() -> None:
    refusal = {"error": {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}}
    good, refused, unread, broken = openai_lines(
        ("r1", Result(BODY)),
        ("r2", Result(error={"type": "prompt_too_long", "message": "too long", "status": 400, "body": refusal})),
        ("r3", Result(error={"type": "invalid_json", "message": "no"})),
        ("r4", Result(error={"type": "generation_failed", "message": "broken off", "status": 200, "body": BODY})),
    )
    assert all(list(line) == ["id", "custom_id", "response", "error"] for line in (good, refused, unread, broken))
    assert good["custom_id"] == "r1" and good["error"] is None and good["id"].startswith("batch_req_")
    assert list(good["response"]) == ["status_code", "request_id", "body"]
    assert good["response"]["status_code"] == 200 and good["response"]["body"] == BODY
    assert refused["response"]["status_code"] == 400 and refused["response"]["body"] == refusal
    assert refused["error"] is None
    assert unread["response"] is None and unread["error"] == {"code": "invalid_json", "message": "no"}
    assert broken["response"] is None and broken["error"]["code"] == "generation_failed"
    assert good["id"] != refused["id"] and good["response"]["request_id"] != refused["response"]["request_id"]


def test_openai_parts_say_what_was_spent(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    rows = [
        (Row("r1", {}), Result(BODY)),
        (Row("r2", {}), Result(BODY, duplicate_of="r1")),
        (Row("r3", {}), Result(error={"type": "refused", "message": "no", "status": 400, "body": {}})),
        (Row("r4", {}), Result(error={"type": "x", "message": "no", "status": 500, "body": {"detail": "odd"}})),
        (Row("r5", {}), Result(error={"type": "invalid_json", "message": "no"})),
        (Row("r6", {}), Result({"data": [], "usage": {"prompt_tokens": 2, "total_tokens": 2}})),
        (Row("r7", {}), Result({"data": []})),
    ]
    storage.write(part_name("e", 0, "openai"), encode_part(rows, "openai", NOTHING))
    _, totals = committed(storage)
    assert totals == Totals(7, 9, 4, 3, {"refused": 1, "http_500": 1, "invalid_json": 1}, 1)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_committed_rows_are_read_back_and_nothing_else(tmp_path: Path, form: str) -> None:
    storage = Storage(str(tmp_path))
    storage.write(part_name("e1", 0, form), encode_part(ROWS, form, SCHEMA))
    copy = Result("X", prompt_tokens=5, output_tokens=2, cached_tokens=1, duplicate_of="a")
    storage.write(part_name("e2", 0, form), encode_part([(Row("c", {}), copy)], form, SCHEMA))
    (tmp_path / "part-e1-00001.jsonl.abcd.tmp").write_text("torn")
    (tmp_path / STAGING / "run").mkdir(parents=True)
    (tmp_path / STAGING / "run" / "part-e1-00002.jsonl").write_text("staged")
    ids, totals = committed(storage)
    assert len(ids) == 3 and all(row_id in ids for row_id in "abc") and "d" not in ids
    assert totals == Totals(3, 5, 1, 2, {"missing_prompt": 1}, 1)
    assert totals.ok == 2


@pytest.mark.parametrize("form", PART_FORMATS)
def test_ids_of_any_unicode_stay_different(tmp_path: Path, form: str) -> None:
    ids = ["é", "e\u0301", "\u2028", "\x85", "\x00", "a\nb", "a\r\nb", "\U0001f600", "\uff21", "A", " A", '"', "\\"]
    storage = Storage(str(tmp_path))
    rows = [(Row(row_id, {}), Result({} if form == "openai" else "x")) for row_id in ids]
    storage.write(part_name("e", 0, form), encode_part(rows, form, NOTHING))
    assert [row.id for row in read_committed(storage)] == ids
    assert len(committed(storage)[0]) == len(ids)


@pytest.mark.parametrize("form", PART_FORMATS)
def test_a_value_that_cannot_be_written_costs_no_other_row(tmp_path: Path, form: str) -> None:
    broken = "half a pair: \ud83d"
    output = {"text": broken, "usage": {"prompt_tokens": 1}} if form == "openai" else broken
    rows = [
        (Row("a", {"text": broken, "big": 2**70}), Result(output, prompt_tokens=1)),
        (Row("b", {}), Result({} if form == "openai" else "fine")),
    ]
    schema = pa.schema([("text", pa.string()), ("big", pa.string())])
    storage = Storage(str(tmp_path))
    storage.write(part_name("e", 0, form), encode_part(rows, form, schema))
    assert [row.id for row in read_committed(storage)] == ["a", "b"]
    first, second = read_results(storage, part_name("e", 0, form))
    assert "half a pair: ?" in str(first.output) and first.prompt_tokens == 1
    assert second.output == ({} if form == "openai" else "fine")


def test_non_finite_numbers_and_odd_keys_are_no_reason_to_fail() -> None:
    (line,) = encode_part(
        [(Row("a", {"x": {1: float("nan")}, "b": b"\xff"}), Result("y"))], "jsonl", NOTHING
    ).splitlines()
    assert json.loads(line)["x"] == {"1": None} and json.loads(line)["b"] == "/w=="


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_results_are_read_back_whole(tmp_path: Path, form: str) -> None:
    results = [
        Result("X", "tool_calls", CALLS, "spam", 5, 2, 1),
        Result(error=BAD, prompt_tokens=3),
        Result(None, "stop", duplicate_of="é"),
    ]
    rows = [(Row(str(number), {"a": 1}), result) for number, result in enumerate(results)]
    storage = Storage(str(tmp_path))
    storage.write(part_name("e", 0, form), encode_part(rows, form, pa.schema([("a", pa.int64())])))
    assert read_results(storage, part_name("e", 0, form)) == results


def test_results_of_openai_parts_are_written_again_as_they_were(tmp_path: Path) -> None:
    refusal = {"error": {"message": "too long", "type": "BadRequestError"}}
    results = [
        Result(BODY, prompt_tokens=7, output_tokens=3, cached_tokens=4),
        Result(error={"type": "BadRequestError", "message": "too long", "status": 400, "body": refusal}),
        Result(error=BAD),
    ]
    rows = [(Row(str(number), {}), result) for number, result in enumerate(results)]
    storage = Storage(str(tmp_path))
    storage.write(part_name("e", 0, "openai"), encode_part(rows, "openai", NOTHING))
    assert read_results(storage, part_name("e", 0, "openai")) == results


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("part-e1-00000.jsonl", b'{"id": "a", '),
        ("part-e1-00000.jsonl", b'{"output": "x"}\n'),
        ("part-e1-00000.jsonl", b"[]\n"),
        ("part-e1-00000.openai.jsonl", b'{"id": "a", "custom_id": "x"}\n'),
        ("part-e1-00000.openai.jsonl", b'{"id": "a", "custom_id": "x", "error": null, "response": null}\n'),
        ("part-e1-00000.parquet", b"PAR1"),
        ("part-e1-00000.parquet", b""),
    ],
)
def test_a_damaged_part_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JobRefused, match=rf"{name} cannot be read"):
        committed(Storage(str(tmp_path)))


def test_part_names() -> None:
    for form in PART_FORMATS:
        name = part_name("x", 7, form)
        assert is_part(name) and format_of(name) == form
    assert part_name("x", 7, "openai") == "part-x-00007.openai.jsonl"
    assert not is_part("report.json") and not is_part("part-x-00000.jsonl.1234.tmp")
    assert not is_part("ordered-00000.jsonl") and not is_part("output.jsonl")


def test_duplicates_are_rows_but_not_tokens() -> None:
    totals = Totals()
    totals.add(5, 1, 2, None)
    totals.add(5, 1, 2, None, duplicate=True)
    totals.add(0, 0, 0, "bad", duplicate=True)
    assert totals == Totals(3, 5, 1, 2, {"bad": 1}, 2) and totals.ok == 2
    assert totals.plus(totals) == Totals(6, 10, 2, 4, {"bad": 2}, 4)

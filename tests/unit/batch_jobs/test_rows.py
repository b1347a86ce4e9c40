"""Row ids and prompts: what is accepted and how each kind of bad row is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batch_jobs.errors import RowError, RowErrorKind
from batch_jobs.input.rows import Row, given_id, prompt_of

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(("value", "expected"), [("a", "a"), (7, "7"), (None, None), ("", None)])
def test_given_id(value: Any, expected: str | None) -> None:
    assert given_id({"id": value}) == expected


@pytest.mark.parametrize("value", [True, 1.5, ["a"], {"a": 1}])
def test_an_id_of_another_type_is_the_rows_error(value: Any) -> None:
    with pytest.raises(RowError) as caught:
        given_id({"id": value})
    assert caught.value.kind is RowErrorKind.INVALID_ID


def test_prompts_that_are_fine() -> None:
    assert prompt_of({"prompt": " hi "}) == " hi "
    assert prompt_of({"prompt": None, "messages": MESSAGES}) == MESSAGES
    assert prompt_of({"messages": json.dumps(MESSAGES)}) == MESSAGES
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert prompt_of({"messages": parts}) == parts


def test_null_fields_of_parquet_structs_are_dropped() -> None:
    assert prompt_of({"messages": [{"role": "user", "content": "hi", "name": None}]}) == MESSAGES


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ({}, RowErrorKind.MISSING_PROMPT),
        ({"prompt": None}, RowErrorKind.MISSING_PROMPT),
        ({"prompt": " \n"}, RowErrorKind.MISSING_PROMPT),
        ({"prompt": 5}, RowErrorKind.INVALID_PROMPT),
        ({"prompt": "a", "messages": MESSAGES}, RowErrorKind.INVALID_PROMPT),
        ({"messages": []}, RowErrorKind.MISSING_PROMPT),
        ({"messages": "not json"}, RowErrorKind.INVALID_PROMPT),
        ({"messages": "hi"}, RowErrorKind.INVALID_PROMPT),
        ({"messages": ["hi"]}, RowErrorKind.INVALID_PROMPT),
        ({"messages": [{"content": "hi"}]}, RowErrorKind.INVALID_PROMPT),
        ({"messages": [{"role": "user", "content": ""}]}, RowErrorKind.MISSING_PROMPT),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, RowErrorKind.INVALID_PROMPT),
    ],
)
def test_bad_prompts(columns: dict[str, Any], kind: RowErrorKind) -> None:
    with pytest.raises(RowError) as caught:
        prompt_of(columns)
    assert caught.value.kind is kind


def test_a_row_survives_the_trip_with_its_problem() -> None:
    row = Row.unpack(Row("a", {"x": b"\0"}, RowError(RowErrorKind.INVALID_JSON, "bad")).pack())
    assert (row.id, row.columns) == ("a", {"x": b"\0"})
    assert row.problem is not None
    assert (row.problem.kind, row.problem.message) == (RowErrorKind.INVALID_JSON, "bad")

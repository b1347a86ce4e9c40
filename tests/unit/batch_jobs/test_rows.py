"""Row ids and prompts: what is accepted and how each kind of bad row is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batch_jobs.errors import RowError, RowErrorKind
from batch_jobs.input.rows import given_id, prompt_of, prompts_of

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


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ([MESSAGES, "b"], [MESSAGES, "b"]),
        (None, ["alone"]),
    ],
)
def test_several_prompts(value: Any, expected: list[Any]) -> None:
    columns = {"prompts": value} if value else {"prompts": None, "prompt": "alone"}
    assert prompts_of(columns) == expected


@pytest.mark.parametrize(
    ("columns", "kind", "message"),
    [
        ({"prompts": []}, RowErrorKind.MISSING_PROMPT, "prompts is empty"),
        ({"prompts": ["a", " "]}, RowErrorKind.MISSING_PROMPT, r"prompts\[1\] is empty"),
        ({"prompts": ["a", 5]}, RowErrorKind.INVALID_PROMPT, r"prompts\[1\] must be a string, got int"),
        ({"prompts": [["hi"]]}, RowErrorKind.INVALID_PROMPT, r"prompts\[0\] must be a list of objects"),
        ({"prompts": "plain text"}, RowErrorKind.INVALID_PROMPT, "prompts is not valid JSON"),
        ({"prompts": {"a": "b"}}, RowErrorKind.INVALID_PROMPT, "must be a list"),
        ({"prompts": ["a"], "prompt": "b"}, RowErrorKind.INVALID_PROMPT, "both prompts and prompt"),
    ],
)
def test_bad_lists_of_prompts(columns: dict[str, Any], kind: RowErrorKind, message: str) -> None:
    with pytest.raises(RowError, match=message) as caught:
        prompts_of(columns)
    assert caught.value.kind is kind

"""Replies into results: every task, several answers, usage, and which refusal is which row error."""

from __future__ import annotations

from typing import Any

import pytest

from batch_jobs.engines.base import Reply
from batch_jobs.errors import RowError, RowErrorKind
from batch_jobs.input.answers import combine
from batch_jobs.input.rows import Row
from batch_jobs.input.spec import JobSpec, PromptTemplate, Task
from batch_jobs.output.parts import Result

ROW = Row("a", {})
SPEC = JobSpec(model="m")
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def text(*texts: str, reason: str = "stop") -> Reply:
    choices = [{"index": index, "text": item, "finish_reason": reason} for index, item in enumerate(texts)]
    return Reply(200, {"choices": choices, "usage": USAGE})


def chat(**message: Any) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": "stop"}
    return Reply(200, {"choices": [choice], "usage": USAGE | {"prompt_tokens_details": None}})


def refusal(status: int, message: str = "no", param: str | None = None) -> Reply:
    return Reply(status, {"error": {"message": message, "type": "BadRequestError", "param": param, "code": status}})


def test_a_text_and_its_usage() -> None:
    expected = Result(output="A", finish_reason="stop", prompt_tokens=5, output_tokens=2, cached_tokens=4)
    assert combine(SPEC, ROW, [text("A")]) == expected


def test_several_prompts_and_several_choices_are_lists() -> None:
    result = combine(SPEC, ROW, [text("A"), text("B", reason="length")])
    assert (result.output, result.finish_reason) == (["A", "B"], "stop,length")
    assert (result.prompt_tokens, result.output_tokens, result.cached_tokens) == (10, 4, 8)
    two = text("A", "B")
    two.body["choices"].reverse()
    assert combine(SPEC, ROW, [two]).output == ["A", "B"]


def test_tool_calls() -> None:
    result = combine(SPEC, ROW, [chat(content=None, tool_calls=[CALL])])
    assert (result.output, result.tool_calls, result.error, result.cached_tokens) == (None, [CALL], None, 0)
    assert combine(SPEC, ROW, [chat(content=None)]).output == ""
    both = combine(SPEC, ROW, [chat(content="A"), chat(content="B", tool_calls=[CALL])])
    assert (both.output, both.tool_calls) == (["A", "B"], [[], [CALL]])


@pytest.mark.parametrize(
    ("task", "data", "output", "label"),
    [
        (Task.EMBED, {"embedding": [0.5, 1.0]}, [0.5, 1.0], None),
        (Task.SCORE, {"score": 0.25}, 0.25, None),
        (Task.CLASSIFY, {"probs": [0.1, 0.9], "label": "good", "num_classes": 2}, [0.1, 0.9], "good"),
    ],
)
def test_pooling(task: Task, data: dict[str, Any], output: Any, label: str | None) -> None:
    reply = Reply(200, {"data": [{"index": 0} | data], "usage": {"prompt_tokens": 3, "total_tokens": 3}})
    result = combine(JobSpec(task=task), ROW, [reply])
    assert result == Result(output=output, label=label, prompt_tokens=3)
    assert combine(JobSpec(task=task), ROW, [reply, reply]).output == [output, output]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (refusal(400, "This model's maximum context length is 8 tokens. However, ..."), RowErrorKind.PROMPT_TOO_LONG),
        (refusal(400, "too much", "input_tokens"), RowErrorKind.PROMPT_TOO_LONG),
        (refusal(400, "too much", "input_text"), RowErrorKind.PROMPT_TOO_LONG),
        (refusal(400, "The decoder prompt (length 9) is longer than the maximum model length of 8."),
         RowErrorKind.PROMPT_TOO_LONG),
        (refusal(400, "max_tokens=9 cannot be greater than max_model_len=8", "max_tokens"),
         RowErrorKind.INVALID_REQUEST),
        (refusal(404, "The model `x` does not exist."), RowErrorKind.INVALID_REQUEST),
        (refusal(500, "maximum context length of the kernel"), RowErrorKind.GENERATION_FAILED),
        (Reply(503, {}), RowErrorKind.GENERATION_FAILED),
        (text("half", reason="abort"), RowErrorKind.GENERATION_FAILED),
        (Reply(200, {"surprise": 1}), RowErrorKind.GENERATION_FAILED),
        (Reply(200, {"choices": []}), RowErrorKind.GENERATION_FAILED),
    ],
)  # fmt: skip
def test_errors(reply: Reply, kind: RowErrorKind) -> None:
    result = combine(SPEC, ROW, [reply])
    assert result.output is None and result.error is not None
    assert result.error["type"] == kind.value and result.error["message"]


def test_the_first_error_names_its_prompt_and_what_was_spent_is_counted() -> None:
    replies = [text("A"), refusal(400, "first"), refusal(500, "second")]
    result = combine(SPEC, ROW, replies)
    assert result.error == {"type": "invalid_request", "message": "prompts[1]: first"}
    assert (result.output, result.prompt_tokens) == (None, 5)
    named = JobSpec(prompts=(PromptTemplate("a", "x"), PromptTemplate("short", "y"), PromptTemplate("c", "z")))
    error = combine(named, ROW, replies).error
    assert error is not None and error["message"] == "prompt short: first"


def test_a_rows_own_problem() -> None:
    row = Row("a", {}, RowError(RowErrorKind.INVALID_JSON, "bad"))
    assert combine(SPEC, row, []).error == {"type": "invalid_json", "message": "bad"}


def test_openai_batch_keeps_whole_bodies() -> None:
    spec = JobSpec(openai_batch=True)
    reply = text("A")
    result = combine(spec, ROW, [reply])
    assert (result.output, result.finish_reason, result.output_tokens) == (reply.body, "stop", 2)
    embedding = Reply(200, {"data": [{"embedding": [1.0]}], "usage": {"prompt_tokens": 3}})
    assert combine(spec, ROW, [embedding]) == Result(output=embedding.body, prompt_tokens=3)
    failed = refusal(400, "why")
    error = {"type": "invalid_request", "message": "why", "status": 400, "body": failed.body}
    assert combine(spec, ROW, [failed]).error == error

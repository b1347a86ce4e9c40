"""Rows into requests: sources of prompts, templates, parameters, adapters, every task; and what the queue learns."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batch_jobs.engines.base import Ask
from batch_jobs.errors import RowError, RowErrorKind
from batch_jobs.input.asks import asks_of, pack, prepare, unpack
from batch_jobs.input.estimates import dedupe_key, expected_tokens, prefix_of
from batch_jobs.input.prepared import PREFIX_CHARS
from batch_jobs.input.rows import Row
from batch_jobs.input.spec import JobSpec, PromptTemplate, Task

CHAT = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def spec(*sources: str, **fields: Any) -> JobSpec:
    prompts = tuple(PromptTemplate(f"p{number}", source) for number, source in enumerate(sources))
    return JobSpec(model="m", prompts=prompts, **fields)


def completion(prompt: str, **fields: Any) -> Ask:
    return Ask("/v1/completions", {"model": "m", "max_tokens": None, "prompt": prompt} | fields)


def chat(*messages: dict[str, Any], **fields: Any) -> Ask:
    return Ask("/v1/chat/completions", {"model": "m", "messages": list(messages)} | fields)


def message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("job", "columns", "expected"),
    [
        (spec(), {"prompt": "hi"}, [completion("hi")]),
        (spec(), {"messages": CHAT}, [chat(*CHAT)]),
        (spec(), {"prompts": ["a", CHAT]}, [completion("a"), chat(*CHAT)]),
        (spec("{{ q }}?"), {"q": "why", "prompt": "not this"}, [completion("why?")]),
        (spec("{{ q }}", "{{ q | upper }}"), {"q": "a"}, [completion("a"), completion("A")]),
        (spec("{{ row['my q'] }}"), {"my q": "a"}, [completion("a")]),
        (spec("{{ q }}", chat=True), {"q": "a"}, [chat(message("user", "a"))]),
        (spec(chat=True), {"prompt": "a"}, [chat(message("user", "a"))]),
        (spec(system="Be {{ t }}"), {"prompt": "a", "t": "b"}, [chat(message("system", "Be b"), message("user", "a"))]),
        (spec(system="S"), {"messages": CHAT}, [chat(message("system", "S"), *CHAT)]),
        (spec(system="S"), {"messages": [message("system", "mine"), *CHAT]}, [chat(message("system", "mine"), *CHAT)]),
        (spec(params={"seed": 1}), {"prompt": "a"}, [completion("a", seed=1)]),
        (spec(params={"seed": 1, "n": 2}), {"prompt": "a", "params": {"seed": 3, "n": None}},
         [completion("a", seed=3, n=2)]),
        (spec(), {"prompt": "a", "params": '{"max_tokens": 5, "odd": [1]}'}, [completion("a", max_tokens=5, odd=[1])]),
        (spec(), {"prompt": "a", "params": {"stream": False, "stream_options": {}}}, [completion("a")]),
        (spec(), {"prompt": "a", "lora": "sql"}, [completion("a", model="sql")]),
        (spec(adapters=("sql",)), {"prompt": "a", "lora": ""}, [completion("a")]),
        (spec(task=Task.EMBED), {"prompt": "a"}, [Ask("/v1/embeddings", {"model": "m", "input": "a"})]),
        (spec(task=Task.EMBED), {"messages": CHAT}, [Ask("/v1/embeddings", {"model": "m", "messages": CHAT})]),
        (spec(task=Task.CLASSIFY), {"prompt": "a"}, [Ask("/classify", {"model": "m", "input": "a"})]),
        (
            spec(task=Task.SCORE),
            {"text_1": "a", "text_2": "b"},
            [Ask("/score", {"model": "m", "text_1": "a", "text_2": "b"})],
        ),
    ],
)  # fmt: skip
def test_requests(job: JobSpec, columns: dict[str, Any], expected: list[Ask]) -> None:
    assert asks_of(job, columns) == expected


def test_score_takes_two_templates() -> None:
    job = JobSpec("m", Task.SCORE, (PromptTemplate("text_2", "{{ d }}"), PromptTemplate("text_1", "Q: {{ q }}")))
    (ask,) = asks_of(job, {"q": "a", "d": "b"})
    assert (ask.body["text_1"], ask.body["text_2"]) == ("Q: a", "b")


@pytest.mark.parametrize(
    ("job", "columns", "kind", "words"),
    [
        (spec("{{ q }}"), {"other": 1}, RowErrorKind.TEMPLATE_FAILED, "template p0: 'q' is undefined"),
        (spec("{{ q }}"), {"q": None}, RowErrorKind.TEMPLATE_FAILED, "'q' is undefined"),
        (spec("{{ 1 / q }}"), {"q": 0}, RowErrorKind.TEMPLATE_FAILED, "ZeroDivisionError"),
        (spec("{{ q.__class__.__mro__ }}"), {"q": "x"}, RowErrorKind.TEMPLATE_FAILED, "unsafe|undefined"),
        (spec("{{ q }}"), {"q": " "}, RowErrorKind.MISSING_PROMPT, "prompt p0 is empty"),
        (spec(), {"prompt": "a", "params": [1]}, RowErrorKind.INVALID_PARAMS, "must be an object, got list"),
        (spec(), {"prompt": "a", "params": "{bad"}, RowErrorKind.INVALID_PARAMS, "not valid JSON"),
        (spec(), {"prompt": "a", "params": {"model": "x"}}, RowErrorKind.INVALID_PARAMS, "may not set model"),
        (spec(), {"prompt": "a", "params": {"stream": True}}, RowErrorKind.INVALID_PARAMS, "stream"),
        (spec(), {"prompt": "a", "lora": 5}, RowErrorKind.INVALID_PARAMS, "adapter's name, got int"),
        (spec(adapters=("sql",)), {"prompt": "a", "lora": "x"}, RowErrorKind.INVALID_PARAMS, "'x' is not an adapter"),
        (spec(task=Task.SCORE), {"text_1": "a"}, RowErrorKind.MISSING_PROMPT, "no text_2"),
        (spec(task=Task.SCORE), {"text_1": "a", "text_2": 5}, RowErrorKind.INVALID_PROMPT, "text_2 must be a string"),
    ],
)
def test_rows_that_cannot_be_asked(job: JobSpec, columns: dict[str, Any], kind: RowErrorKind, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        asks_of(job, columns)
    assert caught.value.kind is kind


def batch(**changes: Any) -> dict[str, Any]:
    row = {"custom_id": "r", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": CHAT}} | changes
    return {name: value for name, value in row.items() if value is not None}


BATCH = spec(openai_batch=True, adapters=("sql",))


@pytest.mark.parametrize(
    ("body", "model"), [({}, "m"), ({"model": "m"}, "m"), ({"model": "sql"}, "sql"), ({"model": None}, "m")]
)
def test_openai_batch_requests(body: dict[str, Any], model: str) -> None:
    sent = {"messages": CHAT, "stream": False, "odd": 1} | body
    assert asks_of(BATCH, batch(body=sent)) == [chat(*CHAT, model=model, odd=1)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"custom_id": None}, "custom_id is missing"),
        ({"method": "GET"}, "method must be POST, got 'GET'"),
        ({"url": "/v1/responses"}, "/v1/responses' is not served in a batch: use one of"),
        ({"url": None}, "url None"),
        ({"url": ["x"]}, "is not served"),
        ({"body": "text"}, "body must be an object, got str"),
        ({"body": {"stream": True}}, "stream is set"),
        ({"body": {"model": "other"}}, "model 'other' is not what this job runs: name m, sql"),
    ],
)
def test_openai_batch_requests_that_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        asks_of(BATCH, batch(**changes))
    assert caught.value.kind is RowErrorKind.INVALID_REQUEST


def test_a_prepared_row() -> None:
    job = spec(params={"max_tokens": 10, "temperature": 0})
    prepared = prepare(Row("a", {"prompt": "x" * 40, "raw": b"\0"}), 7, job)
    assert (prepared.number, prepared.prefix) == (7, "x" * 40)
    assert (prepared.input_tokens, prepared.output_tokens) == (10, 10)
    assert prepared.key is not None and len(prepared.key) == 16
    row, asks = unpack(prepared.payload)
    assert (row.id, row.columns["raw"], row.problem) == ("a", b"\0", None)
    assert asks == [completion("x" * 40, max_tokens=10, temperature=0)]


@pytest.mark.parametrize("problem", [RowError(RowErrorKind.INVALID_JSON, "bad"), None])
def test_a_row_with_a_problem_is_prepared_without_asks(problem: RowError | None) -> None:
    prepared = prepare(Row("a", {"x": 1}, problem), 7, spec())
    row, asks = unpack(prepared.payload)
    assert row.problem is not None
    assert row.problem.kind is (problem.kind if problem else RowErrorKind.MISSING_PROMPT)
    assert (row.columns, asks, prepared.prefix, prepared.key, prepared.input_tokens) == ({"x": 1}, [], "", None, 0)


def test_a_prompt_is_stored_once() -> None:
    row = Row("a", {"prompt": "x" * 100_000})
    assert len(pack(row, asks_of(spec(), row.columns))) < 101_000


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (completion("x" * 8), (2, 128)),
        (completion("x" * 8, max_tokens=3, n=2), (2, 6)),
        (completion("x", max_tokens="many", n=-1), (0.25, 128)),
        (chat(message("user", "x" * 8), max_completion_tokens=7), (3, 7)),
        (Ask("/v1/completions", {"prompt": [1, 2, 3]}), (3, 128)),
        (Ask("/v1/embeddings", {"input": "x" * 8, "max_tokens": 9}), (2, 0)),
        (Ask("/score", {"text_1": "x" * 8, "text_2": "x" * 4}), (3, 0)),
    ],
)
def test_expected_tokens(ask: Ask, expected: tuple[float, float]) -> None:
    assert expected_tokens([ask]) == expected
    assert expected_tokens([ask, ask]) == (2 * expected[0], 2 * expected[1])


def test_an_image_is_not_counted_by_its_letters() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}
    ask = chat({"role": "user", "content": [{"type": "text", "text": "what?"}, image]})
    assert 500 < expected_tokens([ask])[0] < 600
    assert len(prefix_of([ask], "m")) < 100


def test_prefixes() -> None:
    system, user = message("system", "S"), message("user", "hi")
    assert prefix_of([chat(system, user), completion("other")], "m") == "system\nS\nuser\nhi\n"
    assert prefix_of([completion("a", model="sql")], "m") == "sql\na"
    assert prefix_of([completion("a", cache_salt="s")], "m") == '"s"\na'
    assert prefix_of([completion("é" * 10_000)], "m") == "é" * PREFIX_CHARS
    assert prefix_of([], "m") == ""
    long_tools = [{"type": "function", "function": {"name": "f", "description": "d" * 9000}}]
    assert prefix_of([chat(user, tools=long_tools)], "m").endswith("\nuser\nhi\n")
    assert prefix_of([chat(user, tools=TOOLS)], "m") != prefix_of([chat(user)], "m")


@pytest.mark.parametrize("body", [{"messages": 5}, {"messages": [5]}, {"messages": "x"}, {"prompt": {"a": 1}}, {}])
def test_nonsense_in_a_batch_request_is_left_to_the_engine(body: dict[str, Any]) -> None:
    assert prepare(Row("r", batch(body=body)), 0, BATCH).payload


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.0, "n": 1}, True),
        ({"seed": 4, "temperature": 1}, True),
        ({}, False),
        ({"temperature": 0.1}, False),
        ({"temperature": False}, False),
        ({"seed": None}, False),
        ({"seed": True}, False),
        ({"temperature": 0, "n": 2}, False),
    ],
)
def test_what_is_deterministic(fields: dict[str, Any], same: bool) -> None:
    assert (dedupe_key([completion("a", **fields)]) is not None) is same


def test_keys_differ_exactly_where_requests_do() -> None:
    one = chat(*CHAT, seed=1, temperature=0)
    reordered = Ask(one.path, json.loads(json.dumps(dict(reversed(one.body.items())))))
    assert dedupe_key([one]) == dedupe_key([reordered])
    others = [chat(*CHAT, seed=2, temperature=0), chat(message("user", "ho"), seed=1, temperature=0)]
    others.append(Ask("/v1/completions", one.body))
    assert len({dedupe_key([ask]) for ask in [one, *others]} | {dedupe_key([one, one])}) == 5
    assert dedupe_key([one, completion("sampled")]) is None
    assert dedupe_key([Ask("/classify", {"input": "a"})]) is not None
    assert dedupe_key([completion("a", temperature=0, odd=object())]) is None

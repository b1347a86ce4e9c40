"""What the next engine gets so that it goes on with a broken stream, and what cannot go on."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from serve_apps.gateway.courses.continuation import (
    COMPLETIONS_PATH,
    Continuation,
    NotContinuableError,
    Tokens,
    continuation,
    lacks_only_the_end,
)
from serve_apps.gateway.courses.sent import Story
from serve_apps.gateway.courses.tokens import tokens_of
from serve_apps.gateway.doors import CHAT_PATH, RESPONSES_PATH
from tests.support.scripted_text import token_ids
from tests.unit.serve_apps.broken_streams import CHAT, scripted_tokenizer, told

CALLED = Story(threads={(0, "content", 0): ["a"], (0, "tool_calls", 0): [""]})


def go_on(asked: dict[str, Any], text: str, path: str = CHAT_PATH, exact: bool = False) -> tuple[Any, dict[str, Any]]:
    plan = continuation(path, orjson.dumps(asked), told(text), exact=exact)
    body = plan.body(Tokens(token_ids(plan.prefix)))
    return plan, orjson.loads(body or b"null")


def repeated(plan: Continuation) -> str:
    return "".join(plan.repeats.values())


def test_a_chat_gets_its_answer_as_a_message_to_be_continued() -> None:
    _, body = go_on({**CHAT, "max_tokens": 9, "min_tokens": 1, "top_p": 0.5}, " w0 w1")
    assert body == {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " w0 w1"}],
        "max_tokens": 7,
        "min_tokens": 0,
        "top_p": 0.5,
        "add_generation_prompt": False,
        "continue_final_message": True,
    }


def test_white_space_at_the_end_is_produced_again() -> None:
    plan, body = go_on(CHAT, "One.\n\n")
    assert (plan.prefix, repeated(plan), body["messages"][-1]["content"]) == ("One.", "\n\n", "One.")
    plan, body = go_on(CHAT, "One.\n\n", exact=True)
    assert (repeated(plan), body["messages"][-1]["content"]) == ("", "One.\n\n")


def test_nothing_but_white_space_starts_anew() -> None:
    plan, body = go_on({**CHAT, "max_tokens": 3}, " \n")
    assert plan.restarts and repeated(plan) == " \n" and body == {**CHAT, "max_tokens": 3}


def test_a_stop_string_may_reach_back_into_the_last_word() -> None:
    stops = {**CHAT, "stop": ["END", "####"]}
    assert repeated(go_on({**stops, "temperature": 0}, "Paris is big")[0]) == " is big"
    assert repeated(go_on(stops, "Paris is big")[0]) == ""  # it samples: the word would be another one


def test_a_limit_that_is_used_up_leaves_nothing_to_ask_for() -> None:
    assert go_on({**CHAT, "max_tokens": 2}, " w0 w1")[1] is None


def test_token_prompts_go_on_as_tokens() -> None:
    plan = continuation(COMPLETIONS_PATH, orjson.dumps({"prompt": [1, 2]}), told(" w0"))
    tokens = asyncio.run(tokens_of(plan, scripted_tokenizer))
    assert orjson.loads(plan.body(tokens) or b"")["prompt"] == [1, 2, *token_ids(" w0")]
    with pytest.raises(NotContinuableError, match="tokenizer"):
        plan.body(None)


def test_tokens_that_would_merge_where_prompt_and_text_meet_are_kept_apart() -> None:
    plan = continuation(COMPLETIONS_PATH, orjson.dumps({"prompt": "ab"}), told("cd"))
    tokens = asyncio.run(tokens_of(plan, scripted_tokenizer))
    assert tokens is not None and tokens.prompt == [*token_ids("ab"), *token_ids("cd")]
    assert orjson.loads(plan.body(tokens) or b"")["prompt"] == tokens.prompt


NOT_CONTINUABLE: list[tuple[str, dict[str, Any], Story, str]] = [
    (CHAT_PATH, {**CHAT, "n": 2}, told("a"), "several choices"),
    (CHAT_PATH, {**CHAT, "n": 2}, told(" "), "several choices"),
    (CHAT_PATH, CHAT, CALLED, "tool call had begun"),
    (CHAT_PATH, {**CHAT, "tool_choice": "required"}, told("a"), "tool call was required"),
    (CHAT_PATH, {**CHAT, "tool_choice": {"type": "function"}}, told("a"), "tool call was required"),
    (CHAT_PATH, {**CHAT, "response_format": {"type": "json_object"}}, told("{"), "grammar"),
    (CHAT_PATH, {**CHAT, "structured_outputs": {"regex": "a"}}, told("a"), "grammar"),
    (CHAT_PATH, {**CHAT, "regex": "a+"}, told("a"), "grammar"),
    (CHAT_PATH, {**CHAT, "include_reasoning": False}, told("a"), "reasons"),
    (CHAT_PATH, CHAT, told("<think>so"), "reasons"),
    (CHAT_PATH, {**CHAT, "add_generation_prompt": False}, told("a"), "does not open"),
    (CHAT_PATH, {"messages": [{"role": "assistant", "content": "x"}]}, told("a"), "assistant's"),
    (CHAT_PATH, {"messages": "x"}, told("a"), "shape"),
    (
        CHAT_PATH,
        {"messages": [{"role": "assistant", "content": [{"type": "text"}]}], "continue_final_message": True},
        told("a"),
        "plain text",
    ),
    (COMPLETIONS_PATH, {"prompt": "a", "best_of": 3}, told("a"), "several choices"),
    (COMPLETIONS_PATH, {"prompt": ["a", "b"]}, told("a"), "several prompts"),
    (COMPLETIONS_PATH, {"prompt": "a", "echo": True}, told("a"), "repeats the prompt"),
    (COMPLETIONS_PATH, {"prompt": "a", "suffix": "z"}, told("a"), "suffix"),
    (RESPONSES_PATH, {"input": "a"}, told("a"), "cannot go on"),
]


@pytest.mark.parametrize(("path", "asked", "story", "why"), NOT_CONTINUABLE)
def test_what_cannot_go_on_says_why(path: str, asked: dict[str, Any], story: Story, why: str) -> None:
    with pytest.raises(NotContinuableError, match=why):
        continuation(path, orjson.dumps(asked), story)


@pytest.mark.parametrize("structured", [{"response_format": {"type": "json_object"}}, {"tool_choice": "required"}])
def test_before_the_first_character_everything_starts_anew(structured: dict[str, Any]) -> None:
    plan = continuation(CHAT_PATH, orjson.dumps({**CHAT, **structured}), told(""))
    assert plan.restarts and orjson.loads(plan.body(None) or b"") == {**CHAT, **structured}


@pytest.mark.parametrize(
    ("asked", "reasons", "ended"),
    [
        ({}, {}, False),
        ({}, {0: "stop"}, True),
        ({"n": 2}, {0: "stop"}, False),
        ({"n": 2}, {0: "stop", 1: "length"}, True),
        ({"prompt": ["a", "b"], "n": 2}, {0: "stop", 1: "stop"}, False),
        ({"prompt": [1, 2]}, {0: "stop"}, True),
    ],
)
def test_when_only_the_end_is_missing(asked: dict[str, Any], reasons: dict[int, str], ended: bool) -> None:
    assert lacks_only_the_end(orjson.dumps(asked), Story(finish_reasons=reasons)) is ended

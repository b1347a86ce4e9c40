"""A stream cut anywhere, as often as one likes, and continued: the client sees what it would have seen undisturbed.

Pure: the engine is the scripted one's plan and bytes, the replicas die by having their bytes cut.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduling import TokenUsage
from serve_apps.gateway.courses.continuation import (
    COMPLETIONS_PATH,
    Continuation,
    NotContinuableError,
    Tokens,
    continuation,
    lacks_only_the_end,
)
from serve_apps.gateway.doors import CHAT_PATH, RESPONSES_PATH
from serve_apps.gateway.courses.joined import DivergedError, JoinedStream, last_events
from serve_apps.gateway.courses.sent import FOLD_BYTES, SentStream, Story, failure_in
from serve_apps.gateway.sse import EventStream
from serve_apps.gateway.courses.tokens import tokens_of
from tests.support.scripted_engine import stream_events
from tests.support.scripted_script import PrefixCache, Script, make_plan
from tests.support.scripted_text import token_ids
from tests.support.scripted_wire import Wire

PROMPT = "Question: what comes next?"
TEXTS = st.text(alphabet='ab .,\n"\\é', min_size=1, max_size=40)
WIRES = {CHAT_PATH: Wire("m", chat=True), COMPLETIONS_PATH: Wire("m", chat=False)}
_ids = itertools.count()


def engine(path: str, body: bytes) -> bytes:
    """Everything that a replica would say."""
    asked = orjson.loads(body)
    plan = make_plan(asked, chat=path == CHAT_PATH, defaults=Script(), cache=PrefixCache(), max_model_len=None)
    return b"".join(stream_events(plan, WIRES[path], b"id-%d" % next(_ids)))


async def scripted_tokenizer(text: str, special: bool) -> list[int]:
    return token_ids(text)


async def no_tokenizer(text: str, special: bool) -> None:
    return None


@dataclass
class Client:
    """What has arrived, and what it means."""

    raw: bytes = b""
    attempts: list[bytes] = field(default_factory=list)

    @property
    def events(self) -> list[dict[str, Any]]:
        parts = self.raw.split(b"\n\n")
        assert parts[-2:] == [b"data: [DONE]", b""], parts[-2:]
        return [orjson.loads(part.removeprefix(b"data: ")) for part in parts[:-2]]

    def text(self) -> str:
        choices = [choice for event in self.events for choice in event["choices"]]
        return "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in choices)

    def reasons(self) -> list[str]:
        return [c["finish_reason"] for event in self.events for c in event["choices"] if c["finish_reason"]]

    def usages(self) -> list[dict[str, int]]:
        counts = ("prompt_tokens", "completion_tokens", "total_tokens")
        return [{name: e["usage"][name] for name in counts} for e in self.events if e.get("usage")]

    def roles(self) -> int:
        return sum("role" in choice.get("delta", {}) for event in self.events for choice in event["choices"])


def stream(path: str, asked: dict[str, Any], cuts: list[int], *, tokenizer: Any = scripted_tokenizer) -> Client:
    """The stream of a request whose replicas die after so many bytes each."""
    raw = orjson.dumps({"model": "m", "stream": True, "stream_options": {"include_usage": True}, **asked})
    client, sent, events, body, exact = Client(), SentStream(), EventStream(None, True), raw, False
    for cut in [*cuts, None, None, None]:
        client.attempts.append(body)
        said = engine(path, body)[:cut]
        try:
            for start in range(0, len(said), 37):
                if block := events.feed(said[start : start + 37]):
                    client.raw += block
                    sent.keep(block)
            exact = False
        except DivergedError:
            exact = True
        if sent.ended:
            return client
        if not client.raw:
            events = EventStream(None, True)  # not begun: another replica gets the same
            continue
        story = sent.story()
        usage = TokenUsage(7, 0, story.events)
        if lacks_only_the_end(raw, story):
            client.raw += last_events(path, story, None if story.usage else usage, None)
            return client
        plan = continuation(path, raw, story, exact=exact)
        tokens = asyncio.run(tokens_of(plan, tokenizer))
        further = plan.body(tokens)
        if further is None:
            client.raw += last_events(path, story, usage, "length")
            return client
        body, events = further, JoinedStream(plan, tokens, story, wants_usage=True)  # type: ignore[assignment]
    raise AssertionError(f"no end: {client.raw!r}")


def same(whole: Client, joined: Client) -> None:
    assert joined.text() == whole.text()
    assert joined.reasons() == whole.reasons()
    assert joined.roles() == whole.roles()
    assert len({event["id"] for event in joined.events}) == 1
    assert len(joined.usages()) == 1


CHATS = st.builds(
    lambda own: (
        {"messages": [{"role": "user", "content": PROMPT}]}
        | ({} if own is None else {"continue_final_message": True, "add_generation_prompt": False})
        if own is None
        else {
            "messages": [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": own}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        }
    ),
    st.sampled_from([None, "Well:"]),
)
COMPLETIONS = st.builds(lambda prompt: {"prompt": prompt}, st.sampled_from([PROMPT, [PROMPT], [5, 6, 7]]))
LIMITS = st.sampled_from([{}, {"max_tokens": 6}, {"max_completion_tokens": 11, "min_tokens": 2}])
CUTS = st.lists(st.integers(0, 4000), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, asked=CHATS | COMPLETIONS, limits=LIMITS, cuts=CUTS)
def test_a_stream_cut_anywhere_reads_as_if_nothing_had_happened(
    text: str, asked: dict[str, Any], limits: dict[str, Any], cuts: list[int]
) -> None:
    path = CHAT_PATH if "messages" in asked else COMPLETIONS_PATH
    asked = {**asked, **limits, "temperature": 0, "x_script": {"text": text}}
    whole, joined = stream(path, asked, []), stream(path, asked, cuts)
    same(whole, joined)
    if joined.attempts[-1] is not joined.attempts[0] and joined.raw.count(b'"finish_reason":"') == 1:
        synthesised = joined.usages()[0]["prompt_tokens"] == 7
        assert synthesised or joined.usages() == whole.usages()


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, stop=st.lists(st.text("ab .", min_size=1, max_size=4), min_size=1, max_size=2), cuts=CUTS)
def test_stop_strings_are_found_across_a_cut(text: str, stop: list[str], cuts: list[int]) -> None:
    asked = {"messages": [{"role": "user", "content": PROMPT}], "temperature": 0, "stop": stop}
    asked["x_script"] = {"text": text}
    same(stream(CHAT_PATH, asked, []), stream(CHAT_PATH, asked, cuts))


@settings(max_examples=50, deadline=None)
@given(cut=st.integers(0, 4000), limit=st.integers(1, 12))
def test_without_a_tokenizer_events_are_counted(cut: int, limit: int) -> None:
    asked = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": limit}
    same(stream(CHAT_PATH, asked, []), stream(CHAT_PATH, asked, [cut], tokenizer=no_tokenizer))


def test_every_cut_position_of_one_stream() -> None:
    asked = {"prompt": PROMPT, "max_tokens": 5, "x_script": {"text": "One two\n\nthree  four five six"}}
    whole = stream(COMPLETIONS_PATH, asked, [])
    size = len(whole.raw)
    for cut in range(size):
        joined = stream(COMPLETIONS_PATH, asked, [cut])
        same(whole, joined)


# --- what the next engine gets ----------------------------------------------------------------------------------------


def told(text: str, kind: str = "content", **more: Any) -> Story:
    return Story(threads={(0, kind, 0): [text]} if text else {}, **more)


CALLED = Story(threads={(0, "content", 0): ["a"], (0, "tool_calls", 0): [""]})


def go_on(asked: dict[str, Any], text: str, path: str = CHAT_PATH, exact: bool = False) -> tuple[Any, dict[str, Any]]:
    plan = continuation(path, orjson.dumps(asked), told(text), exact=exact)
    body = plan.body(Tokens(token_ids(plan.prefix)))
    return plan, orjson.loads(body or b"null")


def repeated(plan: Continuation) -> str:
    return "".join(plan.repeats.values())


CHAT = {"messages": [{"role": "user", "content": "hi"}]}


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


# --- what was sent ----------------------------------------------------------------------------------------------------


def event(choice: dict[str, Any], **more: Any) -> bytes:
    return b"data: " + orjson.dumps({"id": "x", "choices": [{"index": 0, **choice}], **more}) + b"\n\n"


@pytest.mark.parametrize(
    ("choice", "obstacle"),
    [
        ({"delta": {"tool_calls": [{"index": 0}]}}, "tool call"),
        ({"delta": {"reasoning": "hm"}}, "reasoning"),
        ({"delta": {"reasoning_content": "hm"}}, "reasoning"),
        ({"index": 1, "delta": {"content": "b"}}, "several choices"),
    ],
)
def test_what_is_more_than_text_is_noticed(choice: dict[str, Any], obstacle: str) -> None:
    sent = SentStream()
    sent.keep(event({"delta": {"content": "a", "reasoning": None, "tool_calls": []}}) + event(choice))
    assert obstacle in (sent.story().obstacle or "")


def test_long_streams_are_folded_and_nothing_is_lost() -> None:
    sent, one = SentStream(), event({"delta": {"content": "word "}, "finish_reason": None})
    count = 3 * FOLD_BYTES // len(one)
    for _ in range(count):
        sent.keep(one)
    assert sum(map(len, sent._blocks)) <= FOLD_BYTES
    assert sent.story().text == "word " * count and sent.story().events == count
    assert not sent.ended
    sent.keep(b"data: [DONE]\n\n")
    assert sent.ended and sent.story().done and sent.ended


def test_text_that_looks_like_the_end_is_not_it() -> None:
    sent = SentStream()
    sent.keep(event({"delta": {"content": "data: [DONE]\n\n"}}))
    assert not sent.ended


def test_events_that_nobody_understands_are_an_obstacle() -> None:
    for odd in (b"data: {oops\n\n", b'data: {"choices":3}\n\n', b'data: ["a"]\n\n', b'data: {"choices":[1]}\n\n'):
        sent = SentStream()
        sent.keep(odd)
        assert sent.story().odd
        with pytest.raises(NotContinuableError, match="not understood"):
            continuation(CHAT_PATH, orjson.dumps({**CHAT, "temperature": 0}), sent.story())


def test_errors_inside_of_a_stream() -> None:
    fatal = b'data: {"error": {"message": "engine core died", "code": 500}}\n\n'
    assert failure_in(event({"delta": {}}) + fatal) == "engine core died"
    assert failure_in(fatal.replace(b"500", b"400")) is None
    assert failure_in(b'data: {"error": oops\n\n') is None
    assert failure_in(event({"delta": {"content": 'data: {"error": {"code": 500}}'}})) is None


# --- what the client gets ---------------------------------------------------------------------------------------------


def joined(asked: dict[str, Any], text: str, path: str = CHAT_PATH, **more: Any) -> JoinedStream:
    kind = "content" if path == CHAT_PATH else "text"
    story = told(text, kind, envelope={"id": "first", "created": 1, "model": "m"}, roles={0})
    plan = continuation(path, orjson.dumps(asked), story)
    return JoinedStream(plan, Tokens(token_ids(plan.prefix)), story, **{"wants_usage": True, **more})


def test_the_second_engine_has_no_voice_of_its_own() -> None:
    events = joined(CHAT, " w0")
    assert events.feed(event({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})) == b""
    out = events.feed(event({"delta": {"content": " w1"}}, created=9, system_fingerprint="f"))
    parsed = orjson.loads(out.removeprefix(b"data: "))
    assert parsed["id"] == "first" and parsed["choices"][0]["delta"] == {"content": " w1"}
    usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
    usage["prompt_tokens_details"] = {"cached_tokens": 11}  # type: ignore[assignment]
    out = events.feed(b"data: " + orjson.dumps({"id": "y", "choices": [], "usage": usage}) + b"\n\n")
    said = orjson.loads(out.removeprefix(b"data: "))["usage"]
    assert (said["prompt_tokens"], said["completion_tokens"], said["total_tokens"]) == (10, 4, 14)
    assert said["prompt_tokens_details"] == {"cached_tokens": 10}
    assert events.usage == TokenUsage(10, 10, 4)
    assert events.feed(b"data: [DO") == b"" and events.rest() == b"data: [DO"
    assert events.feed(b"NE]\n\n") == b"data: [DONE]\n\n"


def test_the_usage_is_kept_from_who_did_not_ask() -> None:
    events = joined(CHAT, " w0", wants_usage=False)
    usage = {"prompt_tokens": 11, "completion_tokens": 3}
    assert events.feed(b"data: " + orjson.dumps({"choices": [], "usage": usage}) + b"\n\n") == b""
    assert events.usage == TokenUsage(10, 0, 4)


def test_the_overlap_is_left_out_across_events() -> None:
    events = joined(CHAT, "a \n ")
    assert events.feed(event({"delta": {"content": " "}}) + event({"delta": {"content": "\n"}})) == b""
    assert b'"content":"b"' in events.feed(event({"delta": {"content": " b"}}))


def test_another_text_than_the_overlap_is_not_relayed() -> None:
    with pytest.raises(DivergedError):
        joined(CHAT, "a\n").feed(event({"delta": {"content": " b"}}))


def test_probabilities_belong_to_whole_tokens() -> None:
    scored = {**CHAT, "logprobs": True}
    assert joined(scored, "a\n").feed(event({"delta": {"content": "\n"}, "logprobs": {"content": [1]}})) == b""
    with pytest.raises(DivergedError):
        joined(scored, "a\n").feed(event({"delta": {"content": "\nb"}, "logprobs": {"content": [1]}}))


@pytest.mark.parametrize(("offsets", "shifted"), [([0, 3], [4, 7]), ([-1, -1], [-1, -1])])
def test_offsets_of_probabilities_count_from_the_beginning(offsets: list[int], shifted: list[int]) -> None:
    events = joined({"prompt": "x", "logprobs": 0}, "abcd", COMPLETIONS_PATH)
    out = events.feed(event({"text": " ef", "logprobs": {"text_offset": offsets}}))
    assert orjson.loads(out.removeprefix(b"data: "))["choices"][0]["logprobs"]["text_offset"] == shifted


def test_an_engine_that_begins_to_reason_does_not_go_on() -> None:
    with pytest.raises(DivergedError, match="reason"):
        joined(CHAT, "a").feed(event({"delta": {"reasoning_content": "so"}}))


def test_a_tool_call_that_begins_later_passes() -> None:
    call = {"delta": {"tool_calls": [{"index": 0, "function": {"name": "f"}}]}, "finish_reason": None}
    assert b'"name":"f"' in joined({**CHAT, "tools": [{}]}, "a").feed(event(call))


def test_an_error_of_the_requests_own_passes_as_it_is() -> None:
    error = b'data: {"error": {"message": "no", "code": 400}}\n\n'
    assert joined(CHAT, "a").feed(error) == error


# --- from the beginning -----------------------------------------------------------------------------------------------

DELTAS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(["content", "reasoning_content", "call 0", "call 1"]),
        st.text("ab{", min_size=1, max_size=5),
    ),
    max_size=12,
)


def spoken(deltas: list[tuple[int, str, str]], name: str, piece: int) -> bytes:
    """A stream of two choices, its texts in pieces of that size; call ids and times are this engine's own."""
    out, called = [event({"index": i, "delta": {"role": "assistant", "content": ""}}, id=name) for i in (0, 1)], set()
    for index, kind, text in deltas:
        for start in range(0, len(text), piece):
            part = text[start : start + piece]
            if not kind.startswith("call"):
                out.append(event({"index": index, "delta": {kind: part}, "finish_reason": None}, id=name))
                continue
            call: dict[str, Any] = {"index": int(kind[-1]), "function": {"arguments": part}}
            if (index, kind) not in called:
                called.add((index, kind))
                call |= {"id": f"{name}-{index}-{kind}", "type": "function"}
                call["function"]["name"] = f"f{kind}"
            out.append(event({"index": index, "delta": {"tool_calls": [call]}, "finish_reason": None}, id=name))
    out += [event({"index": i, "delta": {}, "finish_reason": "stop"}, id=name) for i in (0, 1)]
    usage = {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13}
    return (
        b"".join(out) + b"data: " + orjson.dumps({"id": name, "choices": [], "usage": usage}) + b"\n\ndata: [DONE]\n\n"
    )


def heard(raw: bytes) -> dict[Any, Any]:
    """All that a client understands of a stream."""
    client, understood = Client(raw), {}
    for choice in (choice for parsed in client.events for choice in parsed["choices"]):
        index, delta = choice["index"], choice["delta"]
        for name in ("content", "reasoning_content"):
            understood[index, name] = understood.get((index, name), "") + (delta.get(name) or "")
        for call in delta.get("tool_calls") or ():
            key = (index, "call", call["index"])
            known = understood.setdefault(key, {"id": [], "name": [], "arguments": ""})
            known["id"] += [call["id"].split("-", 1)[1]] if "id" in call else []  # whoever named it first
            known["name"] += [call["function"]["name"]] if "name" in call["function"] else []
            known["arguments"] += call["function"].get("arguments", "")
        understood.setdefault((index, "role"), []).extend(["x"] if delta.get("role") else [])
        understood.setdefault((index, "end"), []).extend(filter(None, [choice.get("finish_reason")]))
    return {**understood, "usage": client.usages(), "ids": {parsed["id"] for parsed in client.events}}


@settings(max_examples=400, deadline=None)
@given(deltas=DELTAS, cut=st.integers(1, 30), pieces=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_what_is_more_than_a_text_is_said_again_from_the_beginning(
    deltas: list[tuple[int, str, str]], cut: int, pieces: tuple[int, int]
) -> None:
    """Calls, reasoning, two choices: the second engine cuts its texts otherwise and names calls and times anew."""
    raw = orjson.dumps({**CHAT, "n": 2, "temperature": 0})
    whole = spoken(deltas, "first", pieces[0])
    events = [part + b"\n\n" for part in whole.split(b"\n\n") if part]
    begun = b"".join(events[:cut])
    sent = SentStream()
    sent.keep(begun)
    story = sent.story()
    if sent.ended or lacks_only_the_end(raw, story):
        return
    plan = continuation(CHAT_PATH, raw, story)
    assert plan.body(None) == raw
    rest = JoinedStream(plan, None, story, wants_usage=True).feed(spoken(deltas, "second", pieces[1]))
    assert heard(begun + rest) == heard(whole)


def test_penalties_know_all_words_only_from_the_beginning() -> None:
    punished = {**CHAT, "temperature": 0, "frequency_penalty": 0.5}
    assert continuation(CHAT_PATH, orjson.dumps(punished), told("a b")).restarts
    assert not continuation(CHAT_PATH, orjson.dumps({**punished, "temperature": 1}), told("a b")).restarts
    assert not continuation(CHAT_PATH, orjson.dumps(punished), told("a b"), exact=True).restarts


def test_an_answer_that_comes_out_otherwise_is_not_relayed() -> None:
    greedy = {**CHAT, "temperature": 0, "response_format": {"type": "json_object"}}
    assert joined(greedy, '{"a"').feed(event({"delta": {"content": '{"'}})) == b""
    with pytest.raises(DivergedError):
        joined(greedy, '{"a"').feed(event({"delta": {"content": '{"b'}}))
    with pytest.raises(DivergedError, match="less"):
        joined(greedy, '{"a"').feed(event({"delta": {}, "finish_reason": "stop"}))
    with pytest.raises(NotContinuableError, match="grammar"):
        continuation(CHAT_PATH, orjson.dumps(greedy), told('{"a"'), exact=True)


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

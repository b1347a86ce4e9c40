"""What is more than a text (calls, reasoning, choices, grammars) is said again from the beginning."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_apps.gateway.courses.continuation import NotContinuableError, continuation, lacks_only_the_end
from serve_apps.gateway.courses.joined import DivergedError, JoinedStream
from serve_apps.gateway.courses.sent import SentStream
from serve_apps.gateway.doors import CHAT_PATH
from tests.unit.serve_apps.broken_streams import CHAT, Client, event, joined, told

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

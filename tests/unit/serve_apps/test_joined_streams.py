"""What the client gets of an engine that goes on: more of the same stream."""

from __future__ import annotations

import orjson
import pytest

from cluster.scheduling import TokenUsage
from serve_apps.gateway.courses.continuation import COMPLETIONS_PATH
from serve_apps.gateway.courses.joined import DivergedError
from tests.unit.serve_apps.broken_streams import CHAT, event, joined


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

"""What is kept of a stream while it is sent, and what is read in it once it has broken."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from serve_apps.gateway.courses.continuation import NotContinuableError, continuation
from serve_apps.gateway.courses.sent import FOLD_BYTES, SentStream, failure_in
from serve_apps.gateway.doors import CHAT_PATH
from tests.unit.serve_apps.broken_streams import CHAT, event


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

"""The streaming client: text, timings, usage, and every way to fail."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from cluster.cli.api import RequestFailed, fetch_status, read_event, stream_chat, timeouts
from tests.unit.cli.fake_gateway import FakeGateway

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def client(gateway: FakeGateway) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=gateway.url, timeout=timeouts(10))


async def test_an_answer_is_timed_and_counted(gateway: FakeGateway) -> None:
    pieces: list[str] = []
    gateway.word_s = 0.02
    async with client(gateway) as connection:
        answer = await stream_chat(connection, "sk-1", BODY, pieces.append)
    assert pieces == ["Hel", "lo", "!"] and answer.text == "Hello!"
    assert (answer.tier, answer.finish_reason, answer.queue_wait_s) == ("flex", "stop", 0.0125)
    assert (answer.prompt_tokens, answer.cached_tokens, answer.output_tokens) == (11, 4, 3)
    # The role event carries no token: the first token comes a step later.
    assert answer.ttft_s is not None and answer.ttft_s >= 0.02
    assert len(answer.itl_s) == 2 and all(gap >= 0.015 for gap in answer.itl_s)
    assert answer.total_s >= answer.ttft_s + sum(answer.itl_s)
    assert gateway.keys == ["sk-1"] and gateway.requests[0]["stream_options"] == {"include_usage": True}


async def test_a_refusal_says_status_reason_and_when_to_come_back(gateway: FakeGateway) -> None:
    gateway.fail_status = 429
    async with client(gateway) as connection:
        with pytest.raises(RequestFailed, match=r"429: the queue is full \(try again in 7 s\)") as caught:
            await stream_chat(connection, "k", BODY)
    assert caught.value.status == 429 and caught.value.retry_after_s == 7


async def test_an_error_event_breaks_the_stream_off(gateway: FakeGateway) -> None:
    gateway.fail_after_words = 2
    pieces: list[str] = []
    async with client(gateway) as connection:
        with pytest.raises(RequestFailed, match="broke off: the replica failed"):
            await stream_chat(connection, "k", BODY, pieces.append)
    assert pieces == ["Hel"]


async def test_a_body_that_is_no_json_is_shown(gateway: FakeGateway) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(503, text="<h1>Service unavailable</h1>"))
    async with httpx.AsyncClient(base_url="http://x", transport=transport) as connection:
        with pytest.raises(RequestFailed, match="503: <h1>Service"):
            await stream_chat(connection, "k", BODY)


async def test_line_separators_in_the_text_are_text(gateway: FakeGateway) -> None:
    gateway.words = ["a\u2028b", "\x85", "ü\n"]
    async with client(gateway) as connection:
        assert (await stream_chat(connection, "k", BODY)).text == "a\u2028b\x85ü\n"


async def test_events_may_come_in_any_pieces() -> None:
    stream = 'data: {"choices": [{"delta": {"content": "ä"}}]}\r\n\r\ndata: [DONE]\n\n'.encode()

    async def bytes_one_by_one() -> AsyncIterator[bytes]:
        for number in range(len(stream)):
            yield stream[number : number + 1]

    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=bytes_one_by_one()))
    async with httpx.AsyncClient(base_url="http://x", transport=transport) as connection:
        assert (await stream_chat(connection, "k", BODY)).text == "ä"


def test_status_needs_a_good_key(gateway: FakeGateway) -> None:
    assert fetch_status(gateway.url, "k")["models"][0]["model"] == "m"
    refused = httpx.MockTransport(lambda request: httpx.Response(401, json={"error": {"message": "incorrect API key"}}))
    with pytest.raises(RequestFailed, match="401: incorrect API key"):
        fetch_status("http://x", "k", transport=refused)


def test_events_are_told_from_other_lines() -> None:
    assert read_event(": keep-alive") is None and read_event("") is None and read_event("data: [DONE]") is None
    assert read_event('data:{"a": 1}') == {"a": 1}
    with pytest.raises(RequestFailed, match="unreadable"):
        read_event("data: {broken")

"""`/v1/responses` through the official client: tenants, queue, bill, where the engine has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import orjson
import pytest

from cluster.scheduling import TokenUsage
from serve_apps.gateway.sse import ResponseEventStream
from tests.unit.serve_apps.mortal_engine import MortalEngine, cuts
from tests.unit.serve_apps.odd_engine import OddEngine
from tests.unit.serve_apps.porch import porch
from tests.unit.serve_apps.servers import Engine, served
from tests.unit.serve_apps.test_going_on import gateway_to

PATH = "/v1/responses"
LONG = "tell me something about caches, at some length please; " * 6


async def test_a_response(tmp_path: Path, engines: list[Engine]) -> None:
    async with porch(tmp_path, engines[0].url) as gateway:
        api = gateway.openai()
        for expected_cached in (False, True):
            answer = await api.responses.create(model="m", input=LONG, instructions="be brief", max_output_tokens=5)
            assert answer.output_text == " w0 w1 w2 w3 w4" and answer.status == "incomplete"
            assert answer.usage is not None and answer.service_tier == "default"
            assert (answer.usage.input_tokens_details.cached_tokens > 0) is expected_cached
        assert answer.usage is not None
        [_, row] = await gateway.records(2)
    assert (row.prompt_tokens, row.cached_tokens, row.output_tokens, row.status) == (
        answer.usage.input_tokens,
        answer.usage.input_tokens_details.cached_tokens,
        5,
        200,
    )
    assert gateway.leases.released[-1] == TokenUsage(row.prompt_tokens, row.cached_tokens, 5)


@pytest.mark.parametrize("tier", ["flex", "priority", "default", "auto", None])
async def test_the_tier_that_served_is_named_everywhere(tmp_path: Path, engines: list[Engine], tier: Any) -> None:
    served_by = "default" if tier in ("auto", None) else tier
    async with porch(tmp_path, engines[0].url) as gateway:
        fields = {} if tier is None else {"service_tier": tier}
        answer = await gateway.openai().responses.create(model="m", input="hi", **fields)
        assert answer.service_tier == served_by
        stream = await gateway.openai().responses.create(model="m", input="hi", stream=True, **fields)
        named = {e.response.service_tier for e in [e async for e in stream] if hasattr(e, "response")}
        assert named == {served_by}
        classes = {r.request_class for r in await gateway.records(2)}
    assert classes == {"semi_online" if tier == "flex" else "online"}


async def test_a_stream(tmp_path: Path, engines: list[Engine]) -> None:
    async with porch(tmp_path, engines[0].url) as gateway:
        stream = await gateway.openai().responses.create(
            model="m", input=[{"role": "user", "content": "hello"}], stream=True, extra_body={"x_script": {"tokens": 4}}
        )
        events = [event async for event in stream]
        [row] = await gateway.records(1)
    assert [e.type for e in events][:2] == ["response.created", "response.in_progress"]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == " w0 w1 w2 w3"
    last = events[-1]
    assert last.type == "response.completed" and last.response.usage is not None
    assert (row.output_tokens, row.prompt_tokens) == (
        last.response.usage.output_tokens,
        last.response.usage.input_tokens,
    )
    assert row.output_tokens == 4
    assert row.ttft_s is not None and [e.sequence_number for e in events] == list(range(len(events)))


async def test_the_events_are_the_engines_bytes(tmp_path: Path) -> None:
    parts = [
        b'event: response.created\ndata: {"type":"response.created","service_tier":null}\n',
        b'\nevent: response.output_text.delta\ndata: {"delta":"a"}\n\nevent: resp',
        b'onse.completed\ndata: {"response":{"usage":{"input_tokens":7,"output_tokens":3}}}\n\n',
    ]
    async with (
        served(OddEngine(parts=parts, content_type=b"text/event-stream")) as url,
        porch(tmp_path, url) as gateway,
        gateway.http() as http,
        http.post(PATH, json={"model": "m", "input": "x", "stream": True}) as answer,
    ):
        assert await answer.read() == b"".join(parts)
    assert gateway.leases.released == [TokenUsage(7, 0, 3)]


@pytest.mark.parametrize("last", ["completed", "incomplete", "failed"])
def test_the_usage_is_in_the_last_event(last: str) -> None:
    usage = {"input_tokens": 9, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}}
    text = b'event: response.output_text.delta\ndata: {"delta":"event: response.completed\\n"}\n\n' * 2
    text += f"event: response.{last}\ndata: ".encode() + orjson.dumps({"response": {"usage": usage}}) + b"\n\n"
    for step in (1, 7, len(text)):
        events = ResponseEventStream()
        out = b"".join(events.feed(text[i : i + step]) for i in range(0, len(text), step))
        assert out + events.rest() == text
        assert (events.usage, events.output_tokens) == (TokenUsage(9, 4, 2), 2)


@pytest.mark.parametrize("data", [b"{oops", b"[1]", b'{"response":[]}', b'{"response":{"usage":null}}', b"{}"])
def test_a_last_event_without_usage(data: bytes) -> None:
    events = ResponseEventStream()
    events.feed(b"event: response.completed\ndata: " + data + b"\n\n")
    assert events.usage is None


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b'{"detail":"Not Found"}'),
        (405, b'{"detail":"Method Not Allowed"}'),
        (501, b'{"detail":"The model does not support Responses API"}'),
    ],
)
async def test_an_engine_without_responses(tmp_path: Path, status: int, body: bytes) -> None:
    async with served(OddEngine(status=status, parts=[body])) as url, porch(tmp_path, url) as gateway:
        with pytest.raises(openai.NotFoundError, match=PATH) as caught:
            await gateway.openai().responses.create(model="m", input="hi")
        assert caught.value.code == "unsupported_by_engine"
        assert [r.status for r in await gateway.records(1)] == [404] and gateway.leases.released == [None]


async def test_an_engines_own_404_is_passed_on(tmp_path: Path) -> None:
    own = b'{"error":{"message":"The model `m` does not exist.","type":"NotFoundError","param":"model","code":404}}'
    async with served(OddEngine(status=404, parts=[own])) as url, porch(tmp_path, url) as gateway:
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await gateway.openai().responses.create(model="m", input="hi")


@pytest.mark.parametrize("name", ["previous_response_id", "conversation"])
async def test_what_an_engine_would_keep_for_anyone_is_refused(tmp_path: Path, name: str) -> None:
    async with porch(tmp_path) as gateway:
        with pytest.raises(openai.BadRequestError, match="whole conversation"):
            await gateway.openai().responses.create(model="m", input="hi", extra_body={name: "resp_1"})
    assert gateway.leases.tickets == []


async def test_a_stream_that_breaks_says_so_to_both_kinds_of_clients(tmp_path: Path) -> None:
    """Those that go by an event's type, and those that raise what has an `error`, as the official one."""
    asked: dict[str, Any] = {"model": "m", "input": "hi", "stream": True}
    script = {"x_script": {"tokens": 40}}
    async with gateway_to(tmp_path, MortalEngine(cuts(2500)), MortalEngine(cuts(2500))) as gateway:
        with pytest.raises(openai.APIError, match="replica failed"):
            async for _ in await gateway.openai().responses.create(**asked, extra_body=script):
                pass
        async with gateway.http() as http, http.post(PATH, json=asked | script) as answer:
            last = [event for event in (await answer.read()).split(b"\n\n") if event][-1]
    head, data = last.split(b"\ndata: ")
    said = orjson.loads(data)
    assert (head, said["type"], said["code"]) == (b"event: error", "error", "replica_failed")
    assert said["error"]["message"] == said["message"]

"""The engine's bytes on their way through: patched in one place, cut anywhere, otherwise untouched."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduling import TokenUsage
from serve_apps.gateway.sse import EventStream, body_usage, patch_tier, read_usage
from tests.support.scripted_engine import stream_events
from tests.support.scripted_script import PrefixCache, Script, make_plan
from tests.support.scripted_wire import Wire

TIER = "flex"
ENGINE_USAGE = b'"usage":{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3'
VLLM_STREAM = (
    b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"service_tier":null}\n\n'
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"\\"choices\\":[] \\"usage\\":{ \\n\\n data: x"}}]}\n\n'
    b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"c","choices":[],' + ENGINE_USAGE + b',"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
    b"data: [DONE]\n\n"
)
SGLANG_STREAM = (
    b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a"}}],"usage":null}'
    b"\n\n"
    b'data: {"id":"c","choices":[],' + ENGINE_USAGE + b',"prompt_tokens_details":null}}\n\ndata: [DONE]\n\n'
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from(["id", "choices", "usage", "x", 'a"b', "{", "model"]), JSON, max_size=5)


def scripted_stream() -> bytes:
    body = {"messages": [{"role": "user", "content": "x" * 90}], "stream": True}
    body["stream_options"] = {"include_usage": True}
    plan = make_plan(body, chat=True, defaults=Script(), cache=PrefixCache(), max_model_len=None)
    return b"".join(stream_events(plan, Wire("m", chat=True), b"id"))


def expected(stream: bytes, keep_usage: bool) -> bytes:
    """What the client should get, found the slow way."""
    events = [event for event in stream.split(b"\n\n") if event]
    if not keep_usage:
        events = [e for e in events if not (b'"choices":[]' in e and b'"usage":{' in e)]
    first = events[0]
    if b'"service_tier":null' in first:
        first = first.replace(b'"service_tier":null', b'"service_tier":"flex"')
    else:
        first = first.replace(b"{", b'{"service_tier":"flex",', 1)
    return b"".join(event + b"\n\n" for event in [first, *events[1:]])


@given(
    stream=st.sampled_from([VLLM_STREAM, SGLANG_STREAM, scripted_stream()]),
    keep_usage=st.booleans(),
    cuts=st.lists(st.integers(0, 6000), max_size=12),
)
def test_chunk_boundaries_do_not_matter(stream: bytes, keep_usage: bool, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    events = EventStream(TIER, keep_usage)
    out = b"".join(events.feed(stream[a:b]) for a, b in itertools.pairwise(edges) if a < b)
    assert out + events.rest() == expected(stream, keep_usage)
    assert events.usage is not None


@pytest.mark.parametrize("stream", [VLLM_STREAM, SGLANG_STREAM])
def test_one_byte_at_a_time(stream: bytes) -> None:
    events = EventStream(TIER, keep_usage=False)
    assert b"".join(events.feed(stream[i : i + 1]) for i in range(len(stream))) == expected(stream, keep_usage=False)
    assert events.usage == TokenUsage(9, 4 if stream is VLLM_STREAM else 0, 3)


def test_a_stream_cut_in_an_event_keeps_the_rest_apart() -> None:
    events = EventStream(TIER, keep_usage=True)
    cut = VLLM_STREAM.rindex(b"data: {") + 20
    out = events.feed(VLLM_STREAM[:cut])
    assert out.endswith(b"\n\n") and events.rest() == VLLM_STREAM[cut - 20 : cut]
    assert events.usage is None and events.output_tokens == 3


def test_an_event_that_only_looks_like_usage_passes() -> None:
    broken = b'data: {"id":1}\n\ndata: {"choices":[],"usage":{oops\n\n'
    events = EventStream(TIER, keep_usage=False)
    assert events.feed(broken).endswith(b'data: {"choices":[],"usage":{oops\n\n')
    assert events.usage is None


@settings(max_examples=60)
@given(OBJECTS, st.booleans())
def test_a_patched_body_is_the_same_object_with_the_tier(body: dict[str, Any], null_tier: bool) -> None:
    body = {**body, "service_tier": None} if null_tier else body
    assert orjson.loads(patch_tier(orjson.dumps(body), TIER)) == {**body, "service_tier": TIER}


@settings(max_examples=60)
@given(OBJECTS, st.sampled_from([b"", b" ", b"\n\t ", b"data: "]))
def test_bytes_around_the_tier_stay(body: dict[str, Any], before: bytes) -> None:
    raw = before + orjson.dumps(body)
    patched = patch_tier(raw, TIER)
    removed = patched.replace(b'"service_tier":"flex",', b"", 1).replace(b'"service_tier":"flex"', b"", 1)
    assert removed == raw


@pytest.mark.parametrize(
    "body",
    [
        b'{"text":"say \\"service_tier\\":null twice","id":1}',
        b'{"text":"say \\"service_tier\\":\\"x\\"","id":1}',
        b'{ "id" : 1 }',
        b"{ }",
        b"{}",
    ],
)
def test_the_tier_is_never_written_into_text(body: bytes) -> None:
    assert orjson.loads(patch_tier(body, TIER)) == {**orjson.loads(body), "service_tier": TIER}


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2}, TokenUsage(5, 0, 2)),
        ({"prompt_tokens": 5, "completion_tokens": None, "prompt_tokens_details": None}, TokenUsage(5, 0, 0)),
        ({"input_tokens": 5, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 3}}, TokenUsage(5, 3, 2)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 99}}, TokenUsage(5, 5, 0)),
        ({"prompt_tokens": 5, "prompt_tokens_details": []}, TokenUsage(5, 0, 0)),
        (None, None),
        ("many", None),
    ],
)
def test_reading_usage(usage: Any, tokens: TokenUsage | None) -> None:
    assert read_usage(usage) == tokens
    assert body_usage(orjson.dumps({"usage": usage})) == tokens


@pytest.mark.parametrize("body", [b"", b"not json", b"[1]"])
def test_a_body_without_usage(body: bytes) -> None:
    assert body_usage(body) is None

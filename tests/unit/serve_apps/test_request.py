"""What the gateway reads from a body, and the bytes it hands on."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config import TribesConfig
from cluster.vocabulary import RequestClass
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.catalogue import Catalogue
from serve_apps.gateway.errors import ApiError
from serve_apps.gateway.hints import Hints
from serve_apps.gateway.request import GenerationRequest, parse_request
from tests.unit.serve_apps.harness import CHAT, chat, configuration

CATALOGUE = Catalogue(TribesConfig.model_validate(configuration(Path("weights"))))
ONLY_FLEX = Catalogue(
    TribesConfig.model_validate(configuration(Path("weights"), deployment={"serves": ["semi_online"]}))
)
ONLINE, SEMI = RequestClass.ONLINE, RequestClass.SEMI_ONLINE


def parse(
    body: dict[str, Any] | bytes, catalogue: Catalogue = CATALOGUE, default_tier: str = "auto"
) -> GenerationRequest:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return parse_request(CHAT, raw, Caller("t", "k", default_tier), catalogue, Hints())


BODIES = [
    b'{"model":"m","stream":true}',
    b' \r\n\t{"model":"m","stream":true}',
    b'{ "model" : "m", "stream" : true }',
    b'{\n  "stream": true,\n  "model": "m"\n}\n',
    b'{"messages":[{"role":"user","content":"{\\"stream_options\\": {}}"}],"stream":true,"model":"m"}',
    b'{"x":{"y":{"stream_options":{"include_usage":true}}},"model":"m","stream":true}',
]


@pytest.mark.parametrize("raw", BODIES)
def test_the_usage_option_is_spliced_in_and_nothing_else_changes(raw: bytes) -> None:
    request = parse(raw)
    assert not request.wants_usage
    assert orjson.loads(request.body) == {**orjson.loads(raw), "stream_options": {"include_usage": True}}
    assert request.body.replace(b'"stream_options":{"include_usage":true},', b"", 1) == raw


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (None, {"include_usage": True}),
        ({}, {"include_usage": True}),
        ({"include_usage": False}, {"include_usage": True}),
        ({"continuous_usage_stats": True}, {"include_usage": True, "continuous_usage_stats": True}),
    ],
)
def test_a_clients_own_stream_options_are_kept(options: Any, sent: dict[str, Any]) -> None:
    body = chat(stream=True, stream_options=options)
    request = parse(body)
    assert not request.wants_usage
    assert orjson.loads(request.body) == {**body, "stream_options": sent}


@pytest.mark.parametrize(
    "body", [chat(), chat(stream=False), chat(stream=True, stream_options={"include_usage": True})]
)
def test_other_bodies_are_handed_on_as_they_are(body: dict[str, Any]) -> None:
    assert parse(body).body == orjson.dumps(body)


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=6), st.integers() | st.text(), max_size=4), st.sampled_from([None, 2]))
def test_any_streamed_body_stays_the_same_object(extra: dict[str, Any], indent: int | None) -> None:
    body = {k: v for k, v in extra.items() if k not in ("stream_options", "service_tier")}
    body |= {"model": "m", "stream": True}
    sent = json.loads(parse(json.dumps(body, indent=indent).encode()).body)
    assert sent == {**body, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("asked", "default", "request_class", "echoed"),
    [
        (None, "auto", ONLINE, "default"),
        ("auto", "auto", ONLINE, "default"),
        ("default", "auto", ONLINE, "default"),
        ("priority", "auto", ONLINE, "priority"),
        ("flex", "auto", SEMI, "flex"),
        (None, "flex", SEMI, "flex"),
        ("auto", "flex", SEMI, "flex"),
        ("default", "flex", ONLINE, "default"),
        (None, "priority", ONLINE, "priority"),
        ("auto", "priority", ONLINE, "priority"),
    ],
)
def test_tiers(asked: str | None, default: str, request_class: RequestClass, echoed: str) -> None:
    request = parse(chat(service_tier=asked), default_tier=default)
    assert (request.request_class, request.tier) == (request_class, echoed)


@pytest.mark.parametrize("asked", [None, "auto", "default", "priority", "flex"])
def test_a_model_without_the_class_falls_to_the_nearest(asked: str | None) -> None:
    request = parse(chat(service_tier=asked), catalogue=ONLY_FLEX)
    assert (request.request_class, request.tier) == (SEMI, "flex")


@pytest.mark.parametrize("tier", ["scale", "", "batch", 3, ["flex"], {"a": 1}, True])
def test_unknown_tiers(tier: Any) -> None:
    with pytest.raises(ApiError) as caught:
        parse(chat(service_tier=tier))
    assert (caught.value.status, caught.value.param) == (400, "service_tier")


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 512),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 9, "max_tokens": 7}, 9),
        ({"max_tokens": "many"}, 512),
        ({"max_tokens": -1}, 512),
        ({"max_tokens": True}, 512),
        ({"max_tokens": 10**30}, 512),
    ],
)
def test_the_bound_on_output(fields: dict[str, Any], tokens: int) -> None:
    assert parse(json.dumps(chat(**fields)).encode()).max_output_tokens == tokens


def test_sessions_follow_the_leading_messages() -> None:
    first = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    later = [*first, {"role": "assistant", "content": "a"}, {"role": "user", "content": "v"}]
    other = [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]
    sessions = [parse({"model": "m", "messages": messages}).session for messages in (first, later, other)]
    assert sessions[0] == sessions[1] != sessions[2]


def test_a_session_is_named_by_the_client_first() -> None:
    assert parse(chat(prompt_cache_key="k", user="u")).session == parse(chat("else", prompt_cache_key="k")).session
    assert parse(chat(user="u")).session == parse(chat("else", user="u")).session


def test_a_sessions_name_is_small_whatever_the_client_sends() -> None:
    assert len(parse(chat(user="u" * 1_000_000)).session or "") <= 64


@pytest.mark.parametrize("messages", ["text", [], [1, 2], [[]], [{"role": 1}], {"role": "user"}, None])
def test_odd_messages_are_the_engines_business(messages: Any) -> None:
    assert parse({"model": "m", "messages": messages}).model == "m"


def test_a_programs_name_comes_from_the_header_first() -> None:
    named = parse(chat(metadata={"program_id": "crawl"})).program
    assert named and len(named) <= 64 and parse(chat()).program is None
    raw = orjson.dumps(chat(metadata={"program_id": "crawl"}))

    def with_header(value: bytes) -> str | None:
        return parse_request(CHAT, raw, Caller("t", "k"), CATALOGUE, Hints(program=value)).program

    assert with_header(b"crawl") == named != with_header(b"other")
    assert len(with_header(b"x" * 100_000) or "") <= 64


@pytest.mark.parametrize("metadata", [None, [], "x", {}, {"program_id": None}, {"program_id": 3}, {"program_id": ""}])
def test_metadata_without_a_program(metadata: Any) -> None:
    assert parse(chat(metadata=metadata)).program is None


def test_a_deadline_is_relative_to_now() -> None:
    before_s = time.time()
    request = parse_request(CHAT, orjson.dumps(chat()), Caller("t", "k"), CATALOGUE, Hints(deadline_ms=b"1500"))
    assert request.deadline_at_s is not None and before_s + 1.5 <= request.deadline_at_s <= time.time() + 1.5
    assert parse(chat()).deadline_at_s is None


@pytest.mark.parametrize("value", [b"", b"soon", b"0", b"-1", b"nan", b"inf", b"1e999", b"\xff"])
def test_deadlines_that_are_none(value: bytes) -> None:
    with pytest.raises(ApiError, match="milliseconds") as caught:
        parse_request(CHAT, orjson.dumps(chat()), Caller("t", "k"), CATALOGUE, Hints(deadline_ms=value))
    assert caught.value.status == 400


def test_prefixes_are_hashed_only_where_they_count() -> None:
    by_locality = Catalogue(
        TribesConfig.model_validate(configuration(Path("weights"), scheduling={"fairness": "dlpm"}))
    )
    body = chat("x" * 5000)
    assert parse(body).prefix == () and len(parse(body, by_locality).prefix) > 10


@pytest.mark.parametrize("field", ["stream_options", "cache_salt", "service_tier"])
def test_a_body_too_deep_to_be_written_anew_is_refused(field: str) -> None:
    deep = b'{"model":"m","stream":true,"x":' + b"[" * 500 + b"]" * 500 + b',"%b":%b}'
    value = {"stream_options": b"{}", "cache_salt": b'"s"', "service_tier": b'"flex"'}[field]
    path = "/v1/responses" if field == "service_tier" else CHAT
    raw = deep % (field.encode(), value)
    catalogue = ONLY_FLEX if field == "service_tier" else CATALOGUE
    if field == "service_tier":
        raw = raw.replace(b'"flex"', b'"default"')
    with pytest.raises(ApiError) as caught:
        parse_request(path, raw, Caller("t", "k"), catalogue, Hints())
    assert caught.value.status == 400


def test_messages_too_deep_for_a_session_name() -> None:
    raw = b'{"model":"m","messages":[' + b"[" * 500 + b"]" * 500 + b"]}"
    assert parse(raw).session is None

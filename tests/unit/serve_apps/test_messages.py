"""Anthropic's `/v1/messages`: its keys, shapes and events, with our tenants, queue and bill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from cluster.config import TribesConfig
from cluster.scheduling import Refusal, TokenUsage
from cluster.vocabulary import RequestClass
from serve_apps.gateway.apis.messages import MessageEventStream, read_usage
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.catalogue import Catalogue
from serve_apps.gateway.hints import Hints
from serve_apps.gateway.request import GenerationRequest, parse_request
from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.harness import configuration
from tests.unit.serve_apps.odd_engine import OddEngine
from tests.unit.serve_apps.porch import Porch, porch
from tests.unit.serve_apps.servers import Engine, scripted_engine, served

PATH, COUNT = "/v1/messages", "/v1/messages/count_tokens"
LONG = "what would you call a cat that sleeps all day, and why that? " * 6
CATALOGUE = Catalogue(TribesConfig.model_validate(configuration(Path("weights"))))


def asked(text: str = "hello there", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": text}], **fields}


def parse(body: dict[str, Any], default_tier: str = "auto", hints: Hints | None = None) -> GenerationRequest:
    return parse_request(PATH, orjson.dumps(body), Caller("t", "k", default_tier), CATALOGUE, hints or Hints())


async def post(gateway: Porch, body: Any, path: str = PATH, **headers: str) -> tuple[int, Any]:
    """With the key as Anthropic's clients send it, unless `headers` say otherwise."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    sent = headers or {"x-api-key": gateway.key(), "anthropic-version": "2023-06-01"}
    async with aiohttp.ClientSession(gateway.url) as http, http.post(path, data=data, headers=sent) as answer:
        assert answer.content_type == "application/json"
        return answer.status, orjson.loads(await answer.read())


def assert_error(answer: Any, kind: str, text: str = "") -> None:
    assert answer.keys() == {"type", "error"} and answer["type"] == "error"
    assert answer["error"].keys() == {"type", "message"} and answer["error"]["type"] == kind
    assert text in answer["error"]["message"]


# --- answers and bills ------------------------------------------------------------------------------------------------


async def test_an_answer_and_its_bill(tmp_path: Path, engines: list[Engine]) -> None:
    body = asked(LONG, system=[{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}])
    async with porch(tmp_path, engines[0].url) as gateway:
        for expected_cached in (False, True):
            status, answer = await post(gateway, body)
            assert (status, answer["type"], answer["stop_reason"]) == (200, "message", "max_tokens")
            assert answer["content"] == [{"type": "text", "text": " w0 w1 w2 w3 w4"}]
            usage = answer["usage"]
            assert (usage["cache_read_input_tokens"] > 0) is expected_cached
        [_, row] = await gateway.records(2)
    prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert (row.prompt_tokens, row.cached_tokens, row.output_tokens) == (prompt, usage["cache_read_input_tokens"], 5)
    assert gateway.leases.released[-1] == TokenUsage(prompt, row.cached_tokens, 5)
    assert gateway.leases.tickets[0].max_output_tokens == 5


async def stream_of(gateway: Porch, body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    headers = {"x-api-key": gateway.key()}
    async with (
        aiohttp.ClientSession(gateway.url, headers=headers) as http,
        http.post(PATH, json=body | {"stream": True}) as answer,
    ):
        assert answer.status == 200 and answer.content_type == "text/event-stream"
        parts = [part.split("\n") for part in (await answer.text()).split("\n\n") if part]
    return [(head.removeprefix("event: "), orjson.loads(data.removeprefix("data: "))) for head, data in parts]


async def test_a_stream_and_its_bill(tmp_path: Path, engines: list[Engine]) -> None:
    async with porch(tmp_path, engines[0].url) as gateway:
        for _ in range(2):
            events = await stream_of(gateway, asked(LONG + "!", x_script={"tokens": 4}, max_tokens=50))
        [_, row] = await gateway.records(2)
    kinds = [kind for kind, _ in events]
    assert kinds[:3] == ["message_start", "content_block_start", "content_block_delta"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert "".join(e["delta"]["text"] for kind, e in events if kind == "content_block_delta") == " w0 w1 w2 w3"
    usage = events[-2][1]["usage"]
    assert row.cached_tokens == usage["cache_read_input_tokens"] > 0
    assert row.prompt_tokens == usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert (row.output_tokens, row.status) == (4, 200) and row.ttft_s is not None


async def test_the_events_are_the_engines_bytes(tmp_path: Path) -> None:
    parts = [
        b'event: message_start\ndata: {"message":{"usage":{"input_tokens":7,"output_tokens":0}}}\n',
        b'\nevent: content_block_delta\ndata: {"service_tier":null}\n\nevent: mess',
        b'age_delta\ndata: {"usage":{"output_tokens":3}}\n\nevent: message_stop\ndata: {}\n\n',
    ]
    async with (
        served(OddEngine(parts=parts, content_type=b"text/event-stream")) as url,
        porch(tmp_path, url) as gateway,
        gateway.http() as http,
        http.post(PATH, json=asked(stream=True)) as answer,
    ):
        assert await answer.read() == b"".join(parts)
    assert gateway.leases.released == [TokenUsage(7, 0, 3)]


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + orjson.dumps({"type": kind, **fields}) + b"\n\n"


DELTAS = event("content_block_delta", delta={"text": "event: message_delta\n"}) * 2
SGLANG = event("message_start", message={"usage": {"input_tokens": 5, "cache_read_input_tokens": 4}}) + DELTAS
SGLANG += event("message_delta", usage={"output_tokens": 2})
VLLM = event("message_start", message={"usage": {"input_tokens": 9, "output_tokens": 0}}) + DELTAS
VLLM += event("message_delta", usage={"input_tokens": 5, "cache_read_input_tokens": 4, "output_tokens": 2})


@pytest.mark.parametrize("text", [SGLANG, VLLM])
def test_both_engines_tell_the_same_usage(text: bytes) -> None:
    for step in (1, 7, len(text)):
        events = MessageEventStream()
        out = b"".join(events.feed(text[i : i + step]) for i in range(0, len(text), step))
        assert out + events.rest() == text
        assert (events.usage, events.output_tokens) == (TokenUsage(9, 4, 2), 2)


def test_the_usage_is_not_known_before_the_last_event() -> None:
    events = MessageEventStream()
    events.feed(VLLM[: VLLM.index(b"event: message_delta\ndata")])
    assert events.usage is None and events.output_tokens == 2


@pytest.mark.parametrize("data", [b"{oops", b"[1]", b'{"usage":[]}', b'{"usage":null}', b"{}", b""])
def test_a_last_event_without_usage(data: bytes) -> None:
    events = MessageEventStream()
    events.feed(b"event: message_start\ndata: " + data + b"\n\nevent: message_delta\ndata: " + data + b"\n\n")
    assert events.usage is None


def test_usage() -> None:
    written = {"input_tokens": 1, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 300, "output_tokens": 4}
    assert read_usage(written) == TokenUsage(321, 20, 4)
    assert read_usage({"input_tokens": 3, "cache_read_input_tokens": None}) == TokenUsage(3, 0, 0)
    assert read_usage(None) is None


async def test_counting_tokens_costs_none(tmp_path: Path, engines: list[Engine]) -> None:
    body = {"model": "m", "system": "x" * 400, "messages": [{"role": "user", "content": "x" * 400}]}
    async with porch(tmp_path, engines[0].url) as gateway:
        assert await post(gateway, body, COUNT) == (200, {"input_tokens": 200})
        [row] = await gateway.records(1)
    assert (row.prompt_tokens, row.output_tokens, row.status) == (0, 0, 200)
    [ticket] = gateway.leases.tickets
    assert (ticket.max_output_tokens, ticket.session) == (0, None)


# --- keys -------------------------------------------------------------------------------------------------------------


async def test_keys(tmp_path: Path, engines: list[Engine]) -> None:
    async with porch(tmp_path, engines[0].url) as gateway:
        for header in ({"x-api-key": gateway.key("a")}, {"Authorization": f"Bearer {gateway.key('a')}"}):
            assert (await post(gateway, asked(), **header))[0] == 200
        both = {"Authorization": f"Bearer {gateway.key('a')}", "x-api-key": "sk-ant-of-somebody-else"}
        assert (await post(gateway, asked(), **both))[0] == 200
        other = {"Authorization": "Basic eDp5", "x-api-key": gateway.key("a")}
        assert (await post(gateway, asked(), **other))[0] == 200
        assert {row.tenant for row in await gateway.records(4)} == {"a"}
        for header in ({"x-api-key": ""}, {"x-api-key": "sk-wrong"}, {"Authorization": "Bearer sk-wrong"}, {"x": "y"}):
            for path in (PATH, COUNT):
                status, answer = await post(gateway, asked(), path, **header)
                assert status == 401
                assert_error(answer, "authentication_error", "API key")


# --- errors -----------------------------------------------------------------------------------------------------------


async def test_errors_have_anthropics_shape(tmp_path: Path, engines: list[Engine]) -> None:
    async with porch(tmp_path, engines[0].url, gateway={"max_body_bytes": 100_000}) as gateway:
        for body, status, kind, text in (
            (b"{", 400, "invalid_request_error", "not valid JSON"),
            ({}, 400, "invalid_request_error", "`model`"),
            (asked() | {"model": "claude"}, 404, "not_found_error", "unknown model"),
            (asked(service_tier="gold"), 400, "invalid_request_error", "standard_only"),
            (asked(background=True), 400, "invalid_request_error", "background"),
            ({"model": "m", "messages": []}, 400, "invalid_request_error", "max_tokens"),
            (asked("x" * 17_000), 400, "invalid_request_error", "maximum context length"),
            (asked("x" * 100_000), 413, "request_too_large", "larger than"),
        ):
            got, answer = await post(gateway, body)
            assert got == status
            assert_error(answer, kind, text)
        status, answer = await post(gateway, asked(), "/v1/messages/batches")
        assert status == 404
        assert_error(answer, "not_found_error", "/v1/messages/batches")
        async with gateway.http() as http, http.get(PATH) as got:
            assert got.status == 405
            assert_error(orjson.loads(await got.read()), "invalid_request_error", "POST")


@pytest.mark.parametrize(("status", "wire", "kind"), [(429, 429, "rate_limit_error"), (503, 529, "overloaded_error")])
async def test_refusals(tmp_path: Path, status: int, wire: int, kind: str) -> None:
    refusal = Refusal("t", status, "some_code", "come back later", retry_after_s=6.5)
    async with porch(tmp_path, refusal=refusal) as gateway, gateway.http() as http:
        for stream in (False, True):
            async with http.post(PATH, json=asked(stream=stream)) as answer:
                assert (answer.status, answer.headers["retry-after"]) == (wire, "7")
                assert_error(orjson.loads(await answer.read()), kind, "come back later")
        assert {row.status for row in await gateway.records(2)} == {status}


async def test_an_engine_that_dies_in_the_middle(tmp_path: Path) -> None:
    with scripted_engine() as engine:
        async with porch(tmp_path, engine.url) as gateway:
            body = asked(max_tokens=50, x_script={"tokens": 20, "die_after_tokens": 3, "itl_ms": 1})
            events = await stream_of(gateway, body)
            [row] = await gateway.records(1)
    kind, last = events[-1]
    assert kind == "error"
    assert_error(last, "api_error", "replica failed")
    assert sum(kind == "content_block_delta" for kind, _ in events) == 3 == row.output_tokens


async def test_an_engines_own_error(tmp_path: Path) -> None:
    own = b'{"type":"error","error":{"type":"BadRequestError","message":"thinking.budget_tokens is too large"}}'
    async with served(OddEngine(status=400, parts=[own])) as url, porch(tmp_path, url) as gateway:
        status, answer = await post(gateway, asked())
    assert status == 400
    assert_error(answer, "invalid_request_error", "budget_tokens")


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked_tier", "default", "request_class"),
    [
        (None, "auto", RequestClass.ONLINE),
        ("auto", "flex", RequestClass.SEMI_ONLINE),
        ("standard_only", "auto", RequestClass.ONLINE),
        ("standard_only", "flex", RequestClass.SEMI_ONLINE),
        ("standard_only", "priority", RequestClass.ONLINE),
        ("flex", "auto", RequestClass.SEMI_ONLINE),
        ("priority", "flex", RequestClass.ONLINE),
    ],
)
def test_tiers(asked_tier: str | None, default: str, request_class: RequestClass) -> None:
    body = asked() if asked_tier is None else asked(service_tier=asked_tier)
    request = parse(body, default)
    assert request.request_class is request_class and request.tier is None, "its answers name no tier"
    assert request.body == orjson.dumps(body)


def test_what_is_read_and_what_is_not() -> None:
    body = asked(max_tokens=77, stream=True, metadata={"user_id": "u", "program_id": "crawl"}, top_k=3)
    request = parse(body)
    assert (request.max_output_tokens, request.stream, request.path) == (77, True, PATH)
    assert request.program is not None and request.salt is not None and not request.background
    assert request.body == orjson.dumps(body), "no usage has to be asked for"


def turn(text: Any, *later: Any, **fields: Any) -> dict[str, Any]:
    system = fields.pop("system", "you are brief")
    return asked(messages=[{"role": "user", "content": text}, *later], system=system, **fields)


def test_sessions_are_named_by_the_client_or_by_how_they_begin() -> None:
    reply = {"role": "assistant", "content": "a"}
    first, later = parse(turn("u")), parse(turn("u", reply, {"role": "user", "content": "v"}))
    assert first.session == later.session is not None
    assert parse(turn("x")).session != first.session != parse(turn("u", system="other")).session
    alice = parse(turn("x", metadata={"user_id": "alice"})).session
    assert alice == parse(turn("y", metadata={"user_id": "alice"})).session != first.session
    named = [parse(turn(text, metadata={"user_id": text}), hints=Hints(session=b"s")).session for text in "ab"]
    assert named[0] == named[1] != alice
    assert parse({"model": "m"}).session is None and parse(asked(messages=["x"], metadata=[])).session is not None


def test_marks_of_caching_move_on_and_change_nothing() -> None:
    def block(text: str, **mark: Any) -> list[dict[str, Any]]:
        return [{"type": "text", "text": text, **mark}]

    mark = {"cache_control": {"type": "ephemeral"}}
    first = parse(turn(block("u", **mark), system=block("s", **mark)))
    later = parse(turn(block("u"), {"role": "user", "content": block("v", **mark)}, system=block("s")))
    assert first.session == later.session


@pytest.mark.parametrize(("kind", "salted"), [("vllm", True), ("sglang", False)])
async def test_the_salt_goes_to_engines_that_take_it(tmp_path: Path, kind: str, salted: bool) -> None:
    odd = OddEngine(parts=[b"{}"])
    async with served(odd) as url, porch(tmp_path, url, deployment={"engine": {"kind": kind}}) as gateway:
        assert (await post(gateway, asked(cache_salt="mine")))[0] == 200
        assert (await post(gateway, {"model": "m", "messages": []}, COUNT))[0] == 200
    message, count = map(orjson.loads, odd.bodies)
    assert ("cache_salt" in message) is salted and message.get("cache_salt") != "mine"
    assert "cache_salt" not in count


async def test_tenants_share_the_queue_with_everybody(make_house: MakeHouse) -> None:
    house = await make_house(tenants={"a": {}, "b": {}})
    for tenant in ("a", "b"):
        async with house.session(tenant) as http, http.post(PATH, json=asked(service_tier="flex")) as answer:
            assert answer.status == 200 and answer.headers["x-tribes-class"] == "semi_online"
    rows = await house.ledger(2)
    assert sorted((row.tenant, row.request_class, row.output_tokens) for row in rows) == [
        ("a", "semi_online", 5),
        ("b", "semi_online", 5),
    ]
    await house.quiet()

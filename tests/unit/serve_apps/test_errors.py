"""What is wrong with a request is said in OpenAI's shape, with the right status, and costs nobody else anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import orjson
import pytest

from serve_apps.gateway.errors import ApiError
from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.harness import CHAT, House, chat
from tests.unit.serve_apps.odd_engine import OddEngine
from tests.unit.serve_apps.servers import served

FIELDS = {"message", "type", "param", "code"}


async def send(
    house: House, data: Any, path: str = CHAT, method: str = "POST", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    async with house.session() as http, http.request(method, path, data=data, headers=headers) as answer:
        assert answer.content_type == "application/json"
        body = orjson.loads(await answer.read())
    assert body.keys() == {"error"} and body["error"].keys() == FIELDS and body["error"]["message"]
    return answer.status, body["error"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 409, 413, 415, 416, 422, 424])
def test_what_the_client_did_wrong_is_an_invalid_request(status: int) -> None:
    assert ApiError(status, "code", "message").fields()["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("data", "status", "code", "param"),
    [
        (b"", 400, "invalid_json", None),
        (b"{", 400, "invalid_json", None),
        (b"\xff\xfe", 400, "invalid_json", None),
        (b'{"model":"m"} x', 400, "invalid_json", None),
        (b"[" * 100_000, 400, "invalid_json", None),
        (b"[1]", 400, "invalid_json", None),
        (b'"text"', 400, "invalid_json", None),
        (b"null", 400, "invalid_json", None),
        (b"{}", 400, "missing_model", "model"),
        (b'{"model":null}', 400, "missing_model", "model"),
        (b'{"model":["m"]}', 400, "missing_model", "model"),
        (b'{"model":"other"}', 404, "model_not_found", "model"),
        (b'{"model":"m","service_tier":"gold"}', 400, "invalid_service_tier", "service_tier"),
    ],
)
async def test_bodies(house: House, data: bytes, status: int, code: str, param: str | None) -> None:
    got, error = await send(house, data)
    assert (got, error["code"], error["param"], error["type"]) == (status, code, param, "invalid_request_error")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("DELETE", CHAT, 405),
        ("POST", "/v1/models", 405),
        ("POST", "/v1/nothing", 404),
        ("GET", "/", 404),
        ("GET", "/v1/models/none", 404),
        ("POST", CHAT + "/", 404),
    ],
)
async def test_paths_and_methods(house: House, method: str, path: str, status: int) -> None:
    assert (await send(house, None, path, method))[0] == status


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/tribes/status"])
async def test_keys(house: House, path: str) -> None:
    method = "POST" if path == CHAT else "GET"
    for value in ("", "Bearer ", "Bearer wrong", "Basic x", "wrong"):
        status, error = await send(house, orjson.dumps(chat()), path, method, {"Authorization": value})
        assert (status, error["code"]) == (401, "invalid_api_key"), value


async def test_a_revoked_key_stops_within_five_seconds(house: House) -> None:
    key_id, key = house.store.create_key("default")
    client = house.openai(key=key)
    await client.models.list()
    house.store.revoke_key(key_id)
    with pytest.raises(openai.AuthenticationError):
        async with asyncio.timeout(5):
            while True:
                await client.models.list()
                await asyncio.sleep(0.1)


async def test_exceptions_of_the_official_client(house: House) -> None:
    messages: Any = chat()["messages"]
    client, stranger = house.openai(), house.openai(key="sk-wrong")
    with pytest.raises(openai.AuthenticationError):
        await stranger.chat.completions.create(model="m", messages=messages)
    with pytest.raises(openai.NotFoundError, match="unknown model"):
        await client.chat.completions.create(model="other", messages=messages)
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other")
    with pytest.raises(openai.BadRequestError, match="unknown service_tier"):
        await client.chat.completions.create(model="m", messages=messages, service_tier="scale")
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "x" * 17_000}], stream=stream
            )
        assert caught.value.code == "context_length_exceeded" and "4000 tokens" in caught.value.message


async def test_bodies_too_large(make_house: MakeHouse) -> None:
    house = await make_house(gateway={"max_body_bytes": 1000})

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b" " * 100_000

    for data in (b" " * 1001, b" " * 3_000_000, pieces()):
        assert await send(house, data) == (
            413,
            {
                "message": "the request body is larger than 1000 bytes",
                "type": "invalid_request_error",
                "param": None,
                "code": "request_too_large",
            },
        )
    fits = orjson.dumps(chat()).ljust(1000)
    async with house.session() as http, http.post(CHAT, data=fits) as answer:
        assert answer.status == 200


VLLM = b'{"error":{"message":"bad temperature","type":"BadRequestError","param":"temperature","code":400}}'
SGLANG = b'{"object":"error","message":"bad temperature","type":"BadRequestError","param":"temperature","code":400}'
TRACE = orjson.dumps({"message": 'bad temperature\n\n  File "/opt/sglang/x.py", line 3', "param": "temperature"})


@pytest.mark.parametrize("body", [VLLM, SGLANG, TRACE])
@pytest.mark.parametrize("stream", [False, True])
async def test_engines_own_errors(make_house: MakeHouse, body: bytes, stream: bool) -> None:
    house = await make_house(replicas=0)
    async with served(OddEngine(status=400, parts=[body])) as url:
        await house.replica("odd", url)
        assert await send(house, orjson.dumps(chat(stream=stream))) == (
            400,
            {"message": "bad temperature", "type": "invalid_request_error", "param": "temperature", "code": None},
        )
        await house.quiet()


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested ...",
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        "Requested token count exceeds the model's maximum context length of 4096 tokens.",
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
    ],
)
async def test_too_long_in_both_engines_words(make_house: MakeHouse, message: str) -> None:
    house = await make_house(replicas=0)
    async with served(OddEngine(status=400, parts=[orjson.dumps({"message": message})])) as url:
        await house.replica("odd", url)
        assert (await send(house, orjson.dumps(chat())))[1]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, b'{"detail":"Not Found"}'), (422, b'{"detail":[{"loc":["body"]}]}'), (400, b"<html>"), (400, b"[]")],
)
async def test_other_shapes(make_house: MakeHouse, status: int, body: bytes) -> None:
    house = await make_house(replicas=0)
    async with served(OddEngine(status=status, parts=[body])) as url:
        await house.replica("odd", url)
        assert (await send(house, orjson.dumps(chat())))[0] == status


async def test_refused_requests_are_not_billed(house: House) -> None:
    for data in (b"{", b'{"model":"other"}'):
        await send(house, data)
    assert await house.ask() != []
    assert [r.status for r in await house.ledger(1)] == [200]


async def test_an_answer_that_has_begun_gets_no_second_one(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    async def route(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ApiError(503, "store_unavailable", "too late to say so")

    async def keep(message: Any) -> None:
        sent.append(message["type"])

    monkeypatch.setattr(house.gateway, "_route", route)
    with pytest.raises(ApiError):
        await house.gateway({"type": "http", "path": "/", "method": "GET", "headers": []}, None, keep)  # type: ignore[arg-type]
    assert sent == ["http.response.start"]

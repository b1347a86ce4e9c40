"""The gateway adds nothing to what the engine says and takes nothing away, but for the tier that served the request."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp
import orjson
import pytest

from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.harness import CHAT, House, chat
from tests.unit.serve_apps.odd_engine import OddEngine
from tests.unit.serve_apps.servers import ENGINE_KEY, Engine, served

TIER = b'"service_tier":"default",'
CHANGING = re.compile(rb'"(id|created)":("[^"]*"|\d+)')


async def straight(engine: Engine, path: str, body: dict[str, Any]) -> bytes:
    headers = {"Authorization": f"Bearer {ENGINE_KEY}"}
    async with aiohttp.ClientSession(headers=headers) as http, http.post(engine.url + path, json=body) as answer:
        return await answer.read()


async def through(house: House, path: str, body: dict[str, Any]) -> bytes:
    async with house.session() as http, http.post(path, json=body) as answer:
        assert answer.status == 200
        return await answer.read()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat("x" * 300, max_tokens=40, n=2)),
        (CHAT, chat("slow", max_tokens=10, x_script={"itl_ms": 5})),
        ("/v1/completions", {"model": "m", "prompt": "one two", "max_tokens": 12}),
    ],
)
async def test_the_same_bytes(
    house: House, engines: list[Engine], path: str, body: dict[str, Any], stream: bool
) -> None:
    body = {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body
    # Both answers then find the prompt in the cache, each under its own salt.
    await straight(engines[0], path, body), await through(house, path, body)
    engine, gateway = await straight(engines[0], path, body), await through(house, path, body)
    assert gateway.count(TIER) == 1
    assert CHANGING.sub(b"", gateway.replace(TIER, b"", 1)) == CHANGING.sub(b"", engine)


async def test_only_the_usage_event_is_left_out_when_nobody_asked(house: House, engines: list[Engine]) -> None:
    body = chat(max_tokens=6, stream=True)
    gateway = await through(house, CHAT, body)
    assert CHANGING.sub(b"", gateway.replace(TIER, b"", 1)) == CHANGING.sub(b"", await straight(engines[0], CHAT, body))
    assert gateway.endswith(b"data: [DONE]\n\n") and b"usage" not in gateway


async def test_bytes_that_are_not_ascii_or_events_pass_untouched(make_house: MakeHouse) -> None:
    parts = [
        'data: {"id":1,"x":"żółć 🚀'.encode(),
        b'"}\n',
        b"\n: a comment\n\nevent: odd\ndata: {}\n\n",
        b"data: [DONE]\n\n",
    ]
    house = await make_house(replicas=0)
    async with served(OddEngine(parts=parts, content_type=b"text/event-stream; charset=utf-8")) as url:
        await house.replica("odd", url)
        gateway = await through(house, CHAT, chat(stream=True))
        assert gateway == b"".join(parts).replace(b"{", b"{" + TIER, 1)


@pytest.mark.parametrize("salt", ["tenant", "key", "off"])
async def test_the_engine_gets_the_clients_bytes(make_house: MakeHouse, salt: str) -> None:
    house = await make_house(replicas=0, gateway={"cache_salt": salt})
    odd = OddEngine(parts=[b'{"id":1}'])
    raw = b'{ "model": "m",\n\t"messages":[{"role":"user","content":"\\u00e9"}], "new_parameter": {"a": [1.0, 1e5]} }'
    async with served(odd) as url:
        await house.replica("odd", url)
        async with house.session() as http, http.post(CHAT, data=raw) as answer:
            assert orjson.loads(await answer.read()) == {"service_tier": "default", "id": 1}
    added = b"" if salt == "off" else b'"cache_salt":"%b",' % orjson.loads(odd.bodies[0])["cache_salt"].encode()
    assert odd.bodies == [b"{" + added + raw[1:]]


async def test_the_first_token_does_not_wait_for_the_second(house: House) -> None:
    body = chat(stream=True, max_tokens=3, x_script={"itl_ms": 400})
    loop = asyncio.get_running_loop()
    async with house.session() as http, http.post(CHAT, json=body) as answer:
        start_s = loop.time()
        assert b"w0" in await answer.content.readany()
        assert loop.time() - start_s < 0.3
        assert answer.headers["x-tribes-class"] == "online"


async def test_what_the_answer_says_about_its_course(house: House) -> None:
    async with house.session() as http, http.post(CHAT, json=chat(service_tier="flex")) as answer:
        assert orjson.loads(await answer.read())["service_tier"] == "flex"
        assert answer.headers["x-tribes-class"] == "semi_online"
        assert float(answer.headers["x-tribes-queue-ms"]) >= 0
    assert [r.request_id for r in await house.ledger(1)] == [answer.headers["x-tribes-request-id"]]

"""The engine behind every door: the prompt chooses the pace."""

from __future__ import annotations

import time

import httpx

from benchmarks.gateway_sides.engine import PACED, TOKENS, build
from benchmarks.gateway_sides.load import Door
from tests.support.scripted_script import Script

KEY = "engine-key"


async def ask(prompt: str, key: str = KEY) -> tuple[httpx.Response, float]:
    request = Door("http://engine:1", (key,), "m").requests(prompt)[0]
    body = request.partition(b"\r\n\r\n")[2]
    transport = httpx.ASGITransport(build("m", KEY, Script()))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine:1") as client:
        started_s = time.perf_counter()
        answer = await client.post("/v1/chat/completions", content=body, headers={"Authorization": f"Bearer {key}"})
        return answer, time.perf_counter() - started_s


async def test_twenty_tokens_at_once() -> None:
    answer, took_s = await ask("hello")
    assert answer.text.count('"content":" w') == TOKENS
    assert took_s < 0.09


async def test_twenty_tokens_at_two_hundred_a_second() -> None:
    answer, took_s = await ask(f"{PACED} hello")
    assert answer.text.count('"content":" w') == TOKENS
    assert took_s >= 0.09


async def test_every_pace_asks_for_the_key() -> None:
    for prompt in ("hello", PACED):
        assert (await ask(prompt, "another"))[0].status_code == 401

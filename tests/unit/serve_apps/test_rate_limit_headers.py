"""`x-ratelimit-*` on answers and refusals, as OpenAI writes them."""

from __future__ import annotations

import re
from pathlib import Path

import openai
import pytest

from cluster.scheduling import RateLimitState, Refusal
from serve_apps.gateway.limits import duration, rate_limit_headers
from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.harness import CHAT, chat
from tests.unit.serve_apps.porch import porch
from tests.unit.serve_apps.servers import Engine, eventually

STATE = RateLimitState(
    limit_requests=60,
    remaining_requests=59,
    reset_requests_s=1.0,
    limit_tokens=150_000,
    remaining_tokens=149_984,
    reset_tokens_s=0.0061,
)
HEADERS = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-limit-tokens": "150000",
    "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-remaining-tokens": "149984",
    "x-ratelimit-reset-requests": "1s",
    "x-ratelimit-reset-tokens": "7ms",
}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-3, "0s"),
        (0.0001, "1ms"),
        (0.02, "20ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (7.66, "7.66s"),
        (59.9999, "1m0s"),
        (86.4, "1m26.4s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (86_399.5, "23h59m59.5s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_limits_that_a_tenant_does_not_have_are_left_out() -> None:
    only_tokens = RateLimitState(None, None, None, 100, -5, 2.0)
    names = {name.decode(): value.decode() for name, value in rate_limit_headers(only_tokens)}
    assert names == {
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "2s",
    }
    assert rate_limit_headers(None) == []


@pytest.mark.parametrize("stream", [False, True])
async def test_on_answers(tmp_path: Path, engines: list[Engine], stream: bool) -> None:
    async with (
        porch(tmp_path, engines[0].url, rate_limits=STATE) as gateway,
        gateway.http() as http,
        http.post(CHAT, json=chat(stream=stream)) as answer,
    ):
        assert answer.status == 200
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS


async def test_none_without_limits(tmp_path: Path, engines: list[Engine]) -> None:
    async with (
        porch(tmp_path, engines[0].url) as gateway,
        gateway.http() as http,
        http.post(CHAT, json=chat()) as answer,
    ):
        assert not [name for name in answer.headers if name.lower().startswith("x-ratelimit")]


async def test_on_refusals(tmp_path: Path) -> None:
    refusal = Refusal("t", 429, "rate_limit_exceeded", "too many requests", 1.5, rate_limits=STATE)
    async with porch(tmp_path, refusal=refusal) as gateway:
        with pytest.raises(openai.RateLimitError) as caught:
            await gateway.openai().chat.completions.create(model="m", messages=chat()["messages"])
    headers = caught.value.response.headers
    assert {name: headers.get(name) for name in HEADERS} == HEADERS
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("2", "1500")


async def test_the_whole_way(make_house: MakeHouse) -> None:
    """From the tenant's limits to the headers, over the real dispatcher."""
    house = await make_house(tenants={"small": {"limits": {"requests_per_minute": 20, "tokens_per_minute": 100_000}}})

    async def ask() -> tuple[int, dict[str, str]]:
        async with house.session("small") as http, http.post(CHAT, json=chat(max_tokens=3)) as answer:
            await answer.read()
            return answer.status, {k: v for k, v in answer.headers.items() if k.startswith("x-ratelimit-")}

    async def limits_are_known() -> bool:
        return bool((await ask())[1])

    await eventually(limits_are_known)
    status, left = await ask()
    assert status == 200 and left.keys() == HEADERS.keys()
    assert (left["x-ratelimit-limit-requests"], left["x-ratelimit-limit-tokens"]) == ("20", "100000")
    while status == 200:
        before, (status, left) = left, await ask()
        assert int(left["x-ratelimit-remaining-requests"]) <= int(before["x-ratelimit-remaining-requests"])
    assert status == 429 and left["x-ratelimit-remaining-requests"] == "0"
    assert re.fullmatch(r"(\d+m)?\d+(\.\d+)?m?s", left["x-ratelimit-reset-requests"])

"""The official `openai` client against the gateway: what an application would do."""

from __future__ import annotations

import aiohttp
import pytest

from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.harness import House

HELLO = [{"role": "user", "content": "hello there, how are you?"}]
WORDS = " w0 w1 w2 w3 w4"


async def test_a_chat(house: House) -> None:
    answer = await house.openai().chat.completions.create(model="m", messages=HELLO, max_tokens=5)
    assert answer.choices[0].message.content == WORDS
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 5
    assert answer.service_tier == "default"
    await house.quiet()


async def test_a_streamed_chat_without_usage(house: House) -> None:
    stream = await house.openai().chat.completions.create(model="m", messages=HELLO, max_tokens=5, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == WORDS
    assert all(c.choices for c in chunks) and all(c.usage is None for c in chunks)
    assert chunks[0].service_tier == "default"


async def test_a_streamed_chat_with_usage(house: House) -> None:
    stream = await house.openai().chat.completions.create(
        model="m", messages=HELLO, max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert [c.usage is not None for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 5


async def test_completions(house: House) -> None:
    client = house.openai()
    answer = await client.completions.create(model="m", prompt="once", max_tokens=3)
    assert answer.choices[0].text == " w0 w1 w2"
    stream = await client.completions.create(model="m", prompt="once", max_tokens=3, stream=True)
    assert "".join([c.choices[0].text async for c in stream]) == " w0 w1 w2"


async def test_embeddings(house: House) -> None:
    answer = await house.openai().embeddings.create(model="m", input=["a", "bc"], encoding_format="float")
    assert [len(item.embedding) for item in answer.data] == [8, 8]
    assert [item.index for item in answer.data] == [0, 1]


async def test_models(house: House) -> None:
    client = house.openai()
    assert [model.id async for model in client.models.list()] == ["m"]
    assert (await client.models.retrieve("m")).id == "m"


@pytest.mark.parametrize("choices", [1, 3])
async def test_several_choices_arrive_whole(house: House, choices: int) -> None:
    stream = await house.openai().chat.completions.create(
        model="m", messages=HELLO, max_tokens=4, stream=True, n=choices
    )
    texts = [""] * choices
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [" w0 w1 w2 w3"] * choices


async def page(url: str, key: str | None = None) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(headers=headers) as http, http.get(url) as answer:
        return answer.status, await answer.text()


async def test_health_needs_no_key_and_metrics_do(house: House) -> None:
    """Metrics name every tenant and what it uses."""
    assert await page(f"{house.url}/health") == (200, '{"status":"ok"}')
    for key in (None, "sk-guessed"):
        status, text = await page(f"{house.url}/metrics", key)
        assert status == 401 and "ray_tribes" not in text
    assert await page(f"{house.url}/metrics", house.keys["default"]) == (200, "ray_tribes_up 1\n")


@pytest.mark.parametrize("path", ["/metrics", "/tribes/status"])
async def test_what_names_every_tenant_is_for_operators(make_house: MakeHouse, path: str) -> None:
    tenants = {"default": {"operator": False}, "a": {}, "b": {"operator": True}}
    house = await make_house(replicas=0, tenants=tenants)
    for tenant, expected in (("default", 403), ("a", 403), ("b", 200)):
        status, text = await page(house.url + path, house.keys[tenant])
        assert status == expected
        assert ("operator: true" in text) == (expected == 403)


async def test_metrics_for_everybody_where_the_configuration_says_so(make_house: MakeHouse) -> None:
    house = await make_house(replicas=0, gateway={"metrics_without_key": True})
    assert await page(f"{house.url}/metrics") == (200, "ray_tribes_up 1\n")

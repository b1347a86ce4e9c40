"""Accepted work through the whole house: HTTP, rows, worker, queue, engine, and back to whoever asks by id."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest

from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.deferred_work import doomed, ended, jsonl, lines_of, sections, submit, working
from tests.unit.serve_apps.harness import CHAT, House, chat
from tests.unit.serve_apps.servers import eventually


@pytest.fixture
async def house(make_house: MakeHouse, tmp_path: Path, state_url: str) -> House:
    return await make_house(**sections(tmp_path, tenants={"a": {}, "b": {}}, state={"url": state_url}))


async def answer(client: openai.AsyncOpenAI, id: str) -> Any:
    deadline = time.monotonic() + 15
    while (found := await client.responses.retrieve(id)).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    return found


async def test_a_background_response(house: House) -> None:
    client, other = house.openai("a"), house.openai("b")
    async with working(house):
        asked = await client.responses.create(model="m", input="hello", max_output_tokens=5, background=True)
        assert asked.status == "queued" and asked.id.startswith("resp_")
        with pytest.raises(openai.NotFoundError):
            await other.responses.retrieve(asked.id)
        done = await answer(client, asked.id)
    assert done.status == "incomplete", "the engine stopped at max_output_tokens, and its word counts"
    assert done.id == asked.id and done.output_text
    (usage,) = house.store.usage()
    assert usage.request_id == asked.id and usage.request_class == "online" and usage.output_tokens == 5
    await house.quiet()


async def test_a_background_response_is_cancelled_at_the_engine(house: House) -> None:
    client = house.openai("a")
    async with working(house):
        script = {"x_script": {"itl_ms": 60_000}}
        asked = await client.responses.create(model="m", input="hello", background=True, extra_body=script)

        async def runs() -> bool:
            return await house.running_leases() == 1

        await eventually(runs)
        assert (await client.responses.cancel(asked.id)).status == "cancelled"
        await house.quiet()
    assert (await client.responses.retrieve(asked.id)).status == "cancelled" and house.store.usage() == []


async def test_background_chats_survive_a_killed_worker(house: House) -> None:
    ids = []
    async with house.session("a") as http:
        for number in range(6):
            body = chat(f"question {number}", max_tokens=4, background=True, x_script={"itl_ms": 60})
            async with http.post(CHAT, json=body) as accepted:
                assert accepted.status == 202
                ids.append(orjson.loads(await accepted.read())["id"])
        async with doomed(house, "w1"):
            await eventually(lambda: len(house.store.usage()) > 0)
        async with working(house):
            await eventually(lambda: len(house.store.usage()) == 6)
        for id in ids:
            async with http.get(f"{CHAT}/{id}") as got:
                found = orjson.loads(await got.read())
                assert found["object"] == "chat.completion" and found["usage"]["completion_tokens"] == 4
    assert sorted(row.request_id for row in house.store.usage()) == sorted(ids)
    await house.quiet()


async def test_a_batch_of_responses(house: House) -> None:
    client = house.openai("a")
    lines = [
        {"custom_id": f"r{n}", "method": "POST", "url": "/v1/responses", "body": {"model": "m", "input": f"hi {n}"}}
        for n in range(4)
    ]
    async with working(house):
        done = await ended(client, (await submit(client, jsonl(*lines), endpoint="/v1/responses")).id)
    assert done.status == "completed" and done.error_file_id is None
    output = await lines_of(client, done.output_file_id)
    assert [record["response"]["body"]["object"] for record in output] == ["response"] * 4
    assert done.usage is not None and done.usage.output_tokens == sum(r.output_tokens for r in house.store.usage()) > 0

"""The scripted engine itself: other tests trust its shapes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cluster.engines import free_port
from tests.unit.engines.processes import eventually

REPO = Path(__file__).parents[3]
HI = {"model": "m", "messages": [{"role": "user", "content": "x" * 400}]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    port = free_port("127.0.0.1")
    flags = [
        "--port",
        str(port),
        "--api-key",
        "k",
        "--served-model-name",
        "m",
        "--max-model-len",
        "200",
        "--unknown",
        "1",
    ]
    process = subprocess.Popen([sys.executable, "-m", "tests.support.scripted_engine", *flags], cwd=REPO)
    import socket

    assert eventually(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(5)


@pytest.fixture
async def http(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(url, headers={"Authorization": "Bearer k"}) as session:
        yield session


async def post(
    http: aiohttp.ClientSession, body: dict[str, Any], path: str = "/v1/chat/completions"
) -> tuple[int, Any]:
    async with http.post(path, json=body) as response:
        text = await response.text()
        return response.status, json.loads(text) if response.content_type == "application/json" else text


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def stats(http: aiohttp.ClientSession) -> dict[str, int]:
    async with http.get("/stats") as response:
        return dict(await response.json())


async def test_a_whole_reply(http):
    status, body = await post(http, {**HI, "max_tokens": 3, "x_script": {"prompt_tokens": 7}})
    assert status == 200
    assert body["choices"][0]["message"]["content"] == " w0 w1 w2"
    assert body["choices"][0]["finish_reason"] == "length"
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (7, 3, 10)


async def test_a_stream_has_role_content_finish_and_done(http):
    _, text = await post(http, {**HI, "stream": True, "x_script": {"tokens": 2}})
    chunks = events(text)
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", " w0", " w1", None]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1 and chunks[0]["model"] == "m"


async def test_usage_comes_in_the_stream_only_when_asked_for(http):
    _, text = await post(http, {**HI, "stream": True, "stream_options": {"include_usage": True}})
    last = events(text)[-1]
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 20


async def test_a_repeated_prompt_is_cached_in_blocks(http):
    body = {"model": "m", "messages": [{"role": "user", "content": "fresh " * 50}]}
    assert (await post(http, body))[1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert (await post(http, body))[1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 64}


async def test_choices_and_stop(http):
    _, body = await post(http, {**HI, "n": 2, "stop": ["w3"]})
    assert [choice["message"]["content"] for choice in body["choices"]] == [" w0 w1 w2"] * 2
    assert body["choices"][1]["finish_reason"] == "stop" and body["usage"]["completion_tokens"] == 6


async def test_a_begun_reply_is_continued(http):
    begun = [*HI["messages"], {"role": "assistant", "content": " w0 w1"}]
    body = {"model": "m", "messages": begun, "continue_final_message": True, "x_script": {"tokens": 4}}
    assert (await post(http, body))[1]["choices"][0]["message"]["content"] == " w2 w3"
    del body["continue_final_message"]
    assert (await post(http, body))[1]["choices"][0]["message"]["content"] == " w0 w1 w2 w3"
    _, text = await post(http, {"model": "m", "prompt": "a w6", "x_script": {"tokens": 9}}, "/v1/completions")
    assert text["choices"][0]["text"] == " w7 w8"


async def test_completions_take_token_ids_and_stream_text(http):
    _, body = await post(http, {"model": "m", "prompt": [1, 2, 3], "max_tokens": 2}, "/v1/completions")
    assert body["usage"]["prompt_tokens"] == 3 and body["choices"][0]["text"] == " w0 w1"
    _, text = await post(http, {"model": "m", "prompt": "a", "max_tokens": 2, "stream": True}, "/v1/completions")
    assert [chunk["choices"][0]["text"] for chunk in events(text)] == [" w0", " w1", ""]


async def test_embeddings(http):
    _, body = await post(http, {"model": "m", "input": ["a", "bb"]}, "/v1/embeddings")
    assert [len(row["embedding"]) for row in body["data"]] == [8, 8]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({**HI, "max_tokens": 150}, 400, "maximum context length is 200 tokens. However, you requested 150 output"),
        ({"model": "m", "messages": [{"role": "user", "content": "x" * 900}]}, 400, "225 input tokens"),
        ({**HI, "model": "other"}, 404, "The model `other` does not exist."),
        ({"model": "m", "messages": []}, 400, "messages"),
        ({**HI, "x_script": {"typo": 1}}, 400, "typo"),
        ({**HI, "x_script": {"fail_status": 503}}, 503, "scripted failure"),
    ],
)
async def test_errors_have_vllms_shape(http, body, status, message):
    got, answer = await post(http, body)
    assert got == status
    assert message in answer["error"]["message"] and answer["error"]["code"] == status


async def test_a_wrong_key_is_refused_and_health_needs_none(http):
    async with http.post("/v1/chat/completions", json=HI, headers={"Authorization": "Bearer x"}) as response:
        assert (response.status, await response.json()) == (401, {"error": "Unauthorized"})
    async with http.get("/health", headers={"Authorization": ""}) as response:
        assert response.status == 200


async def test_pacing(http):
    started = time.monotonic()
    await post(http, {**HI, "stream": True, "x_script": {"ttft_ms": 200, "itl_ms": 50, "tokens": 5}})
    assert 0.38 < time.monotonic() - started < 2


@pytest.mark.parametrize("script", [{"hang_after_tokens": 2}, {"itl_ms": 100, "tokens": 600}])
async def test_a_client_that_leaves_is_counted(http, script):
    before = await stats(http)
    async with http.post("/v1/chat/completions", json={**HI, "stream": True, "x_script": script}) as response:
        assert b"w0" in await response.content.readany()
        assert (await stats(http))["running"] == 1
    for _ in range(100):
        after = await stats(http)
        if after["aborted"] == before["aborted"] + 1 and after["running"] == 0:
            break
        await asyncio.sleep(0.02)
    else:
        pytest.fail(f"not noticed: {after}")
    assert after["max_running"] >= 1


async def test_both_engines_metrics(http):
    async with http.get("/metrics") as response:
        text = await response.text()
    assert 'vllm:num_requests_running{model_name="m"} 0' in text and "sglang:num_running_reqs" in text

"""The default cluster end to end: SGLang online, vLLM semi-online, offline jobs, through the official client."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import AsyncOpenAI, AuthenticationError, BadRequestError, NotFoundError, OpenAI

from tests.engine.conftest import SMALL_BATCH
from tests.support.stack import REPO, Stack

pytestmark = [pytest.mark.engine, pytest.mark.live, pytest.mark.timeout(600)]
MODEL = "smollm2-135m"
ROWS = 400
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "large": {"type": "boolean"}},
    "required": ["city", "large"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def api(real_stack: Stack) -> OpenAI:
    return OpenAI(base_url=real_stack.started.api_url, api_key=real_stack.started.api_key, max_retries=0, timeout=200)


def test_chat(api: OpenAI) -> None:
    answer = api.chat.completions.create(model=MODEL, messages=FRANCE, temperature=0, max_tokens=16)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.service_tier == "default" and answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.prompt_tokens == 37


def test_streaming_gives_the_same_text_and_usage_when_asked(api: OpenAI) -> None:
    whole = api.chat.completions.create(model=MODEL, messages=FRANCE, temperature=0, max_tokens=16)
    stream = api.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, max_tokens=16, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].service_tier == "default"
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    plain = api.chat.completions.create(model=MODEL, messages=FRANCE, max_tokens=4, stream=True)
    assert all(chunk.usage is None and chunk.choices for chunk in plain), "nobody asked for the usage event"


def test_completions_stop_and_logprobs(api: OpenAI) -> None:
    done = api.completions.create(model=MODEL, prompt="1, 2, 3, 4,", temperature=0, max_tokens=12, stop=[" 7"])
    assert "5, 6" in done.choices[0].text and "7" not in done.choices[0].text
    scored = api.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, max_tokens=3, logprobs=True, top_logprobs=2
    )
    assert scored.choices[0].logprobs is not None and scored.choices[0].logprobs.content is not None
    assert [len(token.top_logprobs) for token in scored.choices[0].logprobs.content] == [2, 2, 2]


def test_structured_output(api: OpenAI) -> None:
    answer = api.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Describe Paris as JSON."}],
        temperature=0,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}},
    )
    described = json.loads(answer.choices[0].message.content or "")
    assert set(described) == {"city", "large"} and isinstance(described["large"], bool)


def test_errors_come_as_the_official_client_expects(api: OpenAI, real_stack: Stack) -> None:
    with pytest.raises(AuthenticationError, match="API key"):
        OpenAI(base_url=real_stack.started.api_url, api_key="sk-wrong").models.list()
    with pytest.raises(NotFoundError, match="unknown model"):
        api.chat.completions.create(model="gpt-9", messages=FRANCE)
    with pytest.raises(BadRequestError) as too_long:
        api.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 5000}], max_tokens=5)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises((BadRequestError, NotFoundError)):
        api.embeddings.create(model=MODEL, input="this model has no embeddings")


async def test_a_client_that_leaves_frees_its_lease(real_stack: Stack) -> None:
    body = {"model": MODEL, "messages": FRANCE, "stream": True, "max_tokens": 1500, "ignore_eos": True}
    async with (
        httpx.AsyncClient(base_url=real_stack.base_url, headers=real_stack.headers(), timeout=60) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        async for _ in answer.aiter_lines():
            break

    def running() -> int:
        return sum(r["running"] for r in real_stack.status(MODEL)["replicas"])

    await asyncio.to_thread(real_stack.wait, "the lease to be freed", lambda: running() == 0, 15)


async def test_three_tenants_burst_from_zero(real_stack: Stack) -> None:
    """vLLM starts from nothing, all tenants are served, and each pays for what it used."""
    assert not real_stack.replicas(MODEL, "smollm2-burst")
    keys = {tenant: real_stack.key(tenant) for tenant in ("team-a", "team-b", "team-c")}
    since_s = time.time()

    async def one(key: str, number: int) -> Any:
        async with AsyncOpenAI(base_url=real_stack.started.api_url, api_key=key, max_retries=0, timeout=400) as api:
            question = [{"role": "user", "content": f"Say something about the number {number}."}]
            return await api.chat.completions.create(model=MODEL, messages=question, service_tier="flex", max_tokens=24)

    answers = await asyncio.gather(*(one(key, n) for n in range(6) for key in keys.values()))
    assert {a.service_tier for a in answers} == {"flex"}
    assert all(a.usage.completion_tokens > 0 for a in answers)
    spent = sum(a.usage.completion_tokens for a in answers)

    def billed() -> int:
        return sum(r["output_tokens"] for r in real_stack.store.usage_totals(since_s) if r["tenant"] in keys)

    await asyncio.to_thread(real_stack.wait, "the ledger", lambda: billed() == spent, 15)


def test_an_offline_job_killed_half_way_and_rerun_has_every_row_once(real_stack: Stack, tmp_path: Path) -> None:
    """Submitted as users do, with `ray job submit`; its driver is killed in the middle; a rerun finishes the rest."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out"
    rows = [{"id": f"row-{n}", "prompt": f"Count: {n}, {n + 1},"} for n in range(ROWS)]
    source.write_text("\n".join(json.dumps(row) for row in rows))
    config = tmp_path / "config.json"
    plain = real_stack.config.model_dump(mode="json", exclude={"source_path"})
    plain["offline"] = {"part_rows": 16, "part_seconds": 2}
    config.write_text(json.dumps(plain))
    submit_job(real_stack, config, source, output, wait=False, job_id="first")
    real_stack.wait("the first rows", lambda: len(committed(output)) >= 16, 300, 0.25)
    kill_driver(output)
    kept = committed(output)
    assert 16 <= len(kept) < ROWS, "the job was to be killed half way"
    submit_job(real_stack, config, source, output, wait=True, job_id="second")
    ids = [row["id"] for row in committed(output)]
    assert sorted(ids) == sorted(row["id"] for row in rows), "every row exactly once"
    by_id = {row["id"]: row for row in committed(output)}
    assert all(by_id[row["id"]] == row for row in kept), "finished rows are not computed again"
    assert all(row["output_tokens"] > 0 and row["error"] is None for row in by_id.values())


def submit_job(stack: Stack, config: Path, source: Path, output: Path, *, wait: bool, job_id: str) -> None:
    command = ["python", "-m", "batch_jobs.generate", "--config", config, "--input", source, "--output", output]
    more = ["--max-tokens", "40"]
    flags = ["--submission-id", job_id, "--working-dir", REPO / "batch_jobs", *([] if wait else ["--no-wait"])]
    ray_job(stack, "submit", *flags, "--", *command, *more)


def kill_driver(output: Path) -> None:
    drivers = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "batch_jobs.generate" in (line := process.info["cmdline"] or []) and str(output) in line
    ]
    assert drivers, "the driver is gone already"
    for driver in drivers:
        driver.kill()


def ray_job(stack: Stack, *arguments: Any) -> None:
    ray = Path(sys.executable).with_name("ray")
    address = f"http://127.0.0.1:{stack.config.ray.dashboard_port}"
    command = [ray, "job", arguments[0], "--address", address, *arguments[1:]]
    environment = {**os.environ, "PATH": f"{ray.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def committed(output: Path) -> list[dict[str, Any]]:
    lines = [line for part in sorted(output.glob("part-*.jsonl")) for line in part.read_text().splitlines()]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("lines", [SMALL_BATCH, SMALL_BATCH + 4], ids=["through-the-queue", "as-an-offline-job"])
def test_a_batch(real_stack: Stack, lines: int) -> None:
    tenant = f"batch-{lines}"
    api = OpenAI(base_url=real_stack.started.api_url, api_key=real_stack.key(tenant), max_retries=2, timeout=60)
    body = {"model": MODEL, "messages": FRANCE, "temperature": 0, "max_tokens": 16}
    requests = [
        {"custom_id": f"{n}", "method": "POST", "url": "/v1/chat/completions", "body": body | {"seed": n}}
        for n in range(lines - 1)
    ]
    requests.append(requests[0] | {"custom_id": "bad", "body": body | {"max_tokens": -1}})
    text = "\n".join(json.dumps(request) for request in requests)
    uploaded = api.files.create(file=("in.jsonl", text.encode()), purpose="batch")
    batch = api.batches.create(input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h")
    real_stack.wait("the batch", lambda: api.batches.retrieve(batch.id).status == "completed", 240, poll_s=1)
    done = api.batches.retrieve(batch.id)
    assert done.output_file_id is not None and done.error_file_id is not None and done.request_counts is not None
    assert (done.request_counts.completed, done.request_counts.failed) == (lines - 1, 1)
    answers = [json.loads(line) for line in api.files.content(done.output_file_id).text.splitlines()]
    assert sorted(a["custom_id"] for a in answers) == sorted(f"{n}" for n in range(lines - 1))
    assert all("Paris" in a["response"]["body"]["choices"][0]["message"]["content"] for a in answers)
    (error,) = [json.loads(line) for line in api.files.content(done.error_file_id).text.splitlines()]
    assert error["custom_id"] == "bad" and error["response"]["status_code"] == 400
    tokens = sum(a["response"]["body"]["usage"]["completion_tokens"] for a in answers)
    bills = [record for record in real_stack.store.usage() if record.tenant == tenant]
    assert sum(record.output_tokens for record in bills) == tokens
    assert {record.request_class for record in bills if record.output_tokens} == {"offline"}

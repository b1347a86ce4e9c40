"""The request path on a real Ray cluster with scripted engines: doors, scaling from zero, and everybody's death."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from openai import AsyncOpenAI, OpenAI

from tests.support.stack import REPO, Stack

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]
MODEL = "tiny"


def client(stack: Stack, key: str | None = None, **more: Any) -> AsyncOpenAI:
    return AsyncOpenAI(
        base_url=f"{stack.base_url}/v1", api_key=key or stack.started.api_key, max_retries=0, timeout=120, **more
    )


async def stream_words(api: AsyncOpenAI, tokens: int, **more: Any) -> list[str]:
    """The words of one streamed answer of `tokens` tokens."""
    stream = await api.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "go"}],
        stream=True,
        extra_body={"x_script": {"tokens": tokens}, **more.pop("extra", {})},
        **more,
    )
    return [c.choices[0].delta.content async for c in stream if c.choices and c.choices[0].delta.content]


def words(count: int) -> list[str]:
    return [f" w{number}" for number in range(count)]


def test_both_doors_answer_alike(stack: Stack) -> None:
    door = stack.config.gateway.own_door.port
    answers = []
    for base in (stack.base_url, f"http://127.0.0.1:{door}"):
        api = OpenAI(base_url=f"{base}/v1", api_key=stack.started.api_key)
        answer = api.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=5)
        assert answer.service_tier == "default" and answer.usage is not None and answer.usage.completion_tokens == 5
        answers.append(answer.choices[0].message.content)
        assert httpx.get(f"{base}/health").json() == {"status": "ok"}
        assert [m.id for m in api.models.list()] == [MODEL]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("door", ["serve", "own"])
async def test_a_client_that_leaves_frees_its_slot(stack: Stack, door: str) -> None:
    """Behind Serve's endpoint the gateway alone watches for that (serve_apps/gateway/serve_ingress.py)."""
    tenant = f"leaves-{door}"
    base = stack.base_url if door == "serve" else f"http://127.0.0.1:{stack.config.gateway.own_door.port}"
    async with AsyncOpenAI(base_url=f"{base}/v1", api_key=stack.key(tenant), max_retries=0, timeout=60) as api:
        stream = await api.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "go"}],
            stream=True,
            max_tokens=1500,
            extra_body={"x_script": {"tokens": 1500, "itl_ms": 20}},  # half a minute
        )
        await anext(aiter(stream))
        await stream.close()

    def usage() -> list[dict[str, Any]]:
        return [row for row in stack.store.usage_totals() if row["tenant"] == tenant]

    await asyncio.to_thread(stack.wait, "the bill", lambda: bool(usage()), 10)
    assert usage()[0]["requests"] == 1 and usage()[0]["output_tokens"] < 500

    def running() -> int:
        return sum(replica["running"] for replica in stack.status(MODEL)["replicas"])

    await asyncio.to_thread(stack.wait, "no slot in use", lambda: running() == 0, 10)


async def test_a_burst_scales_from_zero_and_back(stack: Stack) -> None:
    """The decision comes within 2 s, every request is served, and the replicas go when nobody asks any more."""
    stack.wait("no burst replica", lambda: not stack.replicas(MODEL, "tiny-burst"), 60)
    keys = {tenant: stack.key(tenant) for tenant in "abc"}
    started = time.monotonic()
    requests = [
        asyncio.create_task(stream_words(client(stack, key), 20, service_tier="flex", extra={}))
        for _ in range(8)
        for key in keys.values()
    ]

    def wanted() -> int:
        return stack.status(MODEL)["scaling"].get("tiny-burst", {}).get("replicas", 0)

    decided_s = await asyncio.to_thread(stack.wait, "the decision to scale", lambda: wanted() > 0, 10, 0.05)
    assert decided_s < 2.0
    assert await asyncio.gather(*requests) == [words(20)] * 24
    assert time.monotonic() - started < 60
    idle_s = await asyncio.to_thread(stack.wait, "scale to zero", lambda: not stack.status(MODEL)["replicas"][2:], 60)
    assert idle_s > 1


async def test_metrics_show_what_happened(stack: Stack) -> None:
    await stream_words(client(stack), 5)

    def page() -> str:
        key = {"Authorization": f"Bearer {stack.started.api_key}"}
        return httpx.get(f"{stack.base_url}/metrics", headers=key, timeout=10).text

    for metric in ("requests_total", "tokens_total", "ttft_seconds", "itl_seconds", "queue_wait_seconds",
                   "queue_depth", "service", "replicas", "cold_start_seconds"):  # fmt: skip
        await asyncio.to_thread(stack.wait, metric, lambda m=metric: f"ray_tribes_{m}" in page(), 40, 0.5)


async def test_the_ledger_has_what_the_engine_reported(stack: Stack) -> None:
    key = stack.key("ledger-test")
    await asyncio.gather(*(stream_words(client(stack, key), 7) for _ in range(10)))

    def rows() -> list[dict[str, Any]]:
        return [r for r in stack.store.usage_totals() if r["tenant"] == "ledger-test"]

    await asyncio.to_thread(stack.wait, "usage", lambda: rows() and rows()[0]["requests"] == 10, 20)
    assert rows()[0]["output_tokens"] == 70


def tribes(stack: Stack, config: Path, *words: str) -> str:
    """A command of the `tribes` program against the running cluster."""
    program = [sys.executable, "-c", "from cluster.cli import main; main()"]
    command = [*program, "batch", *words, "--config", str(config)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_batch_jobs_are_submitted_listed_cancelled_and_resumed(stack: Stack, tmp_path: Path) -> None:
    engine = {"kind": "vllm", "args": {"delay_s": 0.2, "max-num-seqs": 4}}
    settings = stack.config.model_dump(mode="json", exclude_defaults=True)
    settings["deployments"]["tiny-offline"] = {"model": MODEL, "serves": ["offline"], "engine": engine}
    settings["offline"] = {"part_rows": 4, "part_seconds": 1}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    source, output = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text("".join(json.dumps({"id": f"r{i}", "prompt": f"row {i}"}) + "\n" for i in range(200)))
    scripted = ("--engine-class", "tests.support.scripted_offline_engine:ScriptedEngine")
    tribes(stack, config, "submit", "--input", str(source), "--output", str(output), "--no-wait", *scripted)

    def job() -> dict[str, Any]:
        listed = json.loads(tribes(stack, config, "ls", "--json"))
        found = next(row for row in listed["jobs"] if row["output"] == str(output))
        return dict(found)

    stack.wait("rows of the job", lambda: (job()["rows_done"] or 0) >= 8, 60, 0.5)
    running = job()
    assert running["status"] == "running" and running["rows_total"] == 200
    tribes(stack, config, "cancel", running["id"])
    kept = job()
    assert kept["status"] == "stopped" and 8 <= kept["rows_done"] < 200
    assert "200" in tribes(stack, config, "show", str(output))
    tribes(stack, config, "resume", running["id"], "--wait")
    assert json.loads((output / "done.json").read_text())["rows"] == 200
    answers = [json.loads(line)["id"] for part in output.glob("part-*") for line in part.read_text().splitlines()]
    assert len(answers) == len(set(answers)) == 200
    assert job()["status"] in ("complete", "succeeded")


async def test_dispatcher_killed_under_load(stack: Stack) -> None:
    """Running streams do not notice; waiting requests are served by its successor; no lease is lost."""
    before = stack.status(MODEL)["pid"]
    api = client(stack)
    running = [asyncio.create_task(stream_words(api, 600)) for _ in range(16)]
    await asyncio.sleep(1.0)
    waiting = [asyncio.create_task(stream_words(api, 20)) for _ in range(20)]
    await asyncio.sleep(0.3)
    os.kill(before, signal.SIGKILL)
    assert await asyncio.gather(*running) == [words(600)] * 16
    assert await asyncio.gather(*waiting) == [words(20)] * 20
    status = stack.status(MODEL)
    assert status["pid"] != before
    await asyncio.to_thread(
        stack.wait, "leases given back", lambda: sum(r["running"] for r in stack.status(MODEL)["replicas"]) == 0, 10
    )


async def test_engine_killed_under_load(stack: Stack) -> None:
    """Its streams go on on the other replica, every other request is served, Serve brings a new replica."""
    victim = stack.replicas(MODEL, "tiny-online")[0]
    api = client(stack)
    running = [asyncio.create_task(stream_words(api, 300)) for _ in range(16)]
    await asyncio.sleep(0.7)
    waiting = [asyncio.create_task(stream_words(api, 20)) for _ in range(10)]
    await asyncio.sleep(0.2)
    tree = psutil.Process(victim["pid"]).children(recursive=True)
    engine = [p for p in tree if p.cmdline()[1:3] == ["-m", "tests.support.scripted_engine"]]
    assert engine
    for process in engine:
        process.kill()
    assert await asyncio.gather(*running) == [words(300)] * 16
    assert await asyncio.gather(*waiting) == [words(20)] * 10
    await asyncio.to_thread(stack.wait, "two replicas again", lambda: _ready(stack, victim) == 2, 60)


async def test_replica_actor_killed(stack: Stack) -> None:
    """kill -9 of the actor takes its engine along (the guard notices), and Serve replaces it."""
    victim = stack.replicas(MODEL, "tiny-online")[0]
    guard = psutil.Process(victim["pid"])
    tree = [guard, *guard.children(recursive=True)]
    guard.parent().kill()
    _, alive = psutil.wait_procs(tree, timeout=20)
    assert not alive, f"{alive} outlived the replica that owned them"
    await asyncio.to_thread(stack.wait, "two replicas again", lambda: _ready(stack, victim) == 2, 60)
    assert await stream_words(client(stack), 5) == words(5)


def test_plain_serve_deploy_and_status(stack: Stack, tmp_path: Path) -> None:
    """Without `tribes`: the application in a Serve config file, replacing the running one while it answers."""
    dashboard = f"http://127.0.0.1:{stack.config.ray.dashboard_port}"
    serve = Path(sys.executable).with_name("serve")
    file = yaml.safe_load((REPO / "configs" / "serve" / "local.yaml").read_text())
    (tmp_path / "config.json").write_text(stack.config.model_dump_json(exclude={"source_path"}))
    file["applications"][0]["args"]["config"] = str(tmp_path / "config.json")
    file["http_options"]["port"] = stack.config.gateway.port
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(file))
    before = {r["replica_id"] for r in stack.replicas(MODEL, "tiny-online")}
    subprocess.run([serve, "deploy", tmp_path / "serve.yaml", "-a", dashboard], timeout=60, check=True)

    def replaced() -> bool:
        shown = subprocess.run([serve, "status", "-a", dashboard], capture_output=True, text=True, timeout=60)
        running = "status: RUNNING" in shown.stdout and "tiny-online" in shown.stdout
        return running and not before & {r["replica_id"] for r in stack.replicas(MODEL, "tiny-online")}

    stack.wait("new replicas", replaced, 120, 1.0)
    assert asyncio.run(stream_words(client(stack), 5)) == words(5)


def _ready(stack: Stack, victim: dict[str, Any]) -> int:
    return sum(r["replica_id"] != victim["replica_id"] for r in stack.replicas(MODEL, "tiny-online"))

"""Requests that our own replicas refuse or fail are served by an upstream: when, with what in them, at whose cost."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import orjson
import pytest

from cluster.scheduling import Refusal
from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.harness import CHAT, chat, configuration
from tests.unit.serve_apps.odd_engine import OddEngine
from tests.unit.serve_apps.overflow import KEY, USD, Leases, ask, overflowing, upstream
from tests.unit.serve_apps.porch import Porch
from tests.unit.serve_apps.scripted_upstream import CACHED, OUTPUT, PROMPT, ScriptedUpstream, failing, streamed, whole
from tests.unit.serve_apps.servers import Engine, eventually, served

# --- when -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "on_failure", "on_overload"),
    [
        ("queue_full", 429, False, True),
        ("shed", 503, False, True),
        ("queue_timeout", 503, False, True),
        ("dispatcher_unavailable", 503, True, True),
        ("class_not_served", 503, True, True),
        ("rate_limit_exceeded", 429, False, False),
        ("insufficient_quota", 429, False, False),
        ("tenant_queue_full", 429, False, False),
    ],
)
async def test_which_refusals_lead_to_an_upstream(
    tmp_path: Path, code: str, status: int, on_failure: bool, on_overload: bool
) -> None:
    refusal = Refusal("t", status, code, "no", 7.0)
    expected = {"never": False, "on_failure": on_failure, "on_overload": on_overload}
    for use, goes in expected.items():
        async with overflowing(tmp_path, refusal=refusal, use=use) as (porch, far):
            got, body, _ = await ask(porch)
            assert (got, len(far.asked)) == ((200, 1) if goes else (status, 0)), use
            assert goes or body["error"]["code"] == code


async def test_a_queue_without_any_ready_replica_is_a_failure(tmp_path: Path) -> None:
    refusal = Refusal("t", 503, "queue_timeout", "no replica", 7.0)
    async with overflowing(tmp_path, refusal=refusal, use="on_failure", ready=False) as (porch, far):
        assert (await ask(porch))[0] == 200 and len(far.asked) == 1


async def test_known_refusals_go_upstream_too(tmp_path: Path) -> None:
    """In a storm the gateway refuses without asking the queue."""
    async with overflowing(tmp_path) as (porch, far):
        answers = await asyncio.gather(*(ask(porch) for _ in range(40)))
        assert [status for status, _, _ in answers] == [200] * 40 and len(far.asked) == 40


async def test_replicas_that_fail_are_replaced_by_an_upstream(make_house: MakeHouse) -> None:
    far = ScriptedUpstream([whole()])
    async with served(far) as url, served(OddEngine(status=500)) as bad:
        house = await make_house(replicas=0, upstreams={"up": upstream(url, use="on_failure")})
        await house.replica("bad", bad)
        status, body = await house.ask()
        assert (status, body["choices"][0]["message"]["content"]) == (200, "from afar")
        await house.quiet()
        [row] = await house.ledger(1)
        assert (row.deployment, row.upstream_usd) == ("upstream:up", pytest.approx(USD))


async def test_a_request_waits_no_longer_than_it_should(make_house: MakeHouse) -> None:
    far = ScriptedUpstream([whole()])
    async with served(far) as url:
        house = await make_house(max_running=1, upstreams={"up": upstream(url, wait_s=0.3)})
        busy = asyncio.create_task(house.ask(x_script={"ttft_ms": 1500}))
        await eventually(lambda: len(house.dispatcher()._queue.leases()) == 1)
        began_s = time.monotonic()
        status, body = await house.ask()
        assert status == 200 and body["model"] == "their-m" and 0.25 < time.monotonic() - began_s < 1.2
        assert (await busy)[1]["model"] == "m"
        await house.quiet()


async def test_a_request_that_no_upstream_takes_goes_back_to_the_queue(make_house: MakeHouse) -> None:
    far = ScriptedUpstream([failing(500)])
    async with served(far) as url:
        house = await make_house(max_running=1, upstreams={"up": upstream(url, wait_s=0.2)})
        busy = asyncio.create_task(house.ask(x_script={"ttft_ms": 700}))
        await eventually(lambda: len(house.dispatcher()._queue.leases()) == 1)
        status, body = await house.ask()
        assert (status, body["model"], len(far.asked)) == (200, "m", 1)
        await busy
        await house.quiet()
        assert {row.deployment for row in await house.ledger(2)} == {"d"}


async def test_after_its_deadline_a_request_goes_nowhere(tmp_path: Path) -> None:
    refusal = Refusal("t", 503, "queue_timeout", "too late", 7.0)
    async with (
        overflowing(tmp_path, refusal=refusal) as (porch, far),
        porch.http() as http,
        http.post(CHAT, json=chat(), headers={"x-deadline-ms": "0.001"}) as answer,
    ):
        assert (answer.status, far.asked) == (503, [])


async def test_our_own_replicas_are_asked_first(tmp_path: Path, engines: list[Engine]) -> None:
    far = ScriptedUpstream([whole()])
    async with served(far) as url:
        config = configuration(tmp_path, upstreams={"up": upstream(url, wait_s=0.1)})
        async with Porch(config, Leases([engines[0].url])).running() as porch:
            status, body, headers = await ask(porch)
            assert (status, body["model"], far.asked) == (200, "m", []) and "x-tribes-upstream" not in headers


# --- what goes out, what comes back -----------------------------------------------------------------------------------


async def test_an_upstream_gets_the_request_and_nothing_of_ours(tmp_path: Path) -> None:
    async with overflowing(tmp_path, drop=["top_k"]) as (porch, far), porch.http() as http:
        body = chat("hi", temperature=0.5, top_k=3, cache_salt="s", service_tier="flex", priority=3)
        headers = {"x-session-id": "private", "cookie": "c=1", "user-agent": "client/1"}
        async with http.post(CHAT, json=body, headers=headers) as answer:
            assert (answer.status, answer.headers["x-tribes-upstream"]) == (200, "up")
    [asked] = far.asked
    assert asked.path == CHAT
    assert asked.body == {"model": "their-m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5}
    assert asked.headers["authorization"] == f"Bearer {KEY}" and asked.headers["user-agent"] == "tribes"
    assert not {"x-session-id", "cookie"} & asked.headers.keys()
    assert porch.key() not in str(asked.headers)


async def test_a_stream_passes_and_its_usage_is_billed(tmp_path: Path) -> None:
    async with overflowing(tmp_path, streamed("a", "b", "c")) as (porch, far):
        async with porch.http() as http, http.post(CHAT, json=chat(stream=True)) as answer:
            text = await answer.read()
            assert answer.content_type == "text/event-stream" and answer.headers["x-tribes-upstream"] == "up"
        events = [e for e in text.split(b"\n\n") if e]
        assert [orjson.loads(e[6:])["choices"][0]["delta"]["content"] for e in events[:-1]] == ["a", "b", "c"]
        assert events[-1] == b"data: [DONE]"  # the usage was ours to ask for
        assert far.asked[0].body["stream_options"] == {"include_usage": True}
        [record] = await porch.records(1)
    assert (record.prompt_tokens, record.cached_tokens, record.output_tokens) == (PROMPT, CACHED, OUTPUT)
    assert (record.deployment, record.upstream_usd) == ("upstream:up", pytest.approx(USD))
    assert record.status == 200 and record.ttft_s is not None


async def test_the_official_client_reads_an_upstreams_stream(tmp_path: Path) -> None:
    async with overflowing(tmp_path, streamed("a", "b")) as (porch, _):
        options = {"include_usage": True}
        stream = await porch.openai().chat.completions.create(
            model="m", messages=chat()["messages"], stream=True, stream_options=options
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "ab"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == OUTPUT


async def test_a_stream_that_tells_no_usage_is_billed_by_what_was_seen(tmp_path: Path) -> None:
    async with overflowing(tmp_path, streamed("a", "b", "c", told=False)) as (porch, _):
        async with porch.http() as http, http.post(CHAT, json=chat(stream=True)) as answer:
            await answer.read()
        [record] = await porch.records(1)
    assert 3 <= record.output_tokens <= 4 and record.prompt_tokens > 0 and record.upstream_usd > 0


async def test_the_bill_is_the_tenants(tmp_path: Path) -> None:
    async with overflowing(tmp_path) as (porch, _):
        await ask(porch, "default")
        await eventually(lambda: bool(porch.store.usage()))
        async with porch.http() as http, http.get("/v1/usage?since=today&group_by=model") as answer:
            [line] = (await answer.json())["data"]
        assert (line["model"], line["usd"], line["upstream_usd"]) == ("m", pytest.approx(USD), pytest.approx(USD))
        assert porch.store.spent_today(time.time())["default"].usd == pytest.approx(USD)

"""Requests that our own replicas refuse or fail are served by an upstream: when, with what in them, at whose cost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest

from cluster.scheduling import Refusal
from cluster.state import UsageRecord
from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.harness import CHAT, chat, configuration
from tests.unit.serve_apps.odd_engine import OddEngine
from tests.unit.serve_apps.porch import Porch, StubLeases
from tests.unit.serve_apps.scripted_upstream import (
    CACHED,
    OUTPUT,
    PROMPT,
    Reply,
    ScriptedUpstream,
    event,
    failing,
    streamed,
    whole,
)
from tests.unit.serve_apps.servers import Engine, eventually, served

KEY = "sk-upstream-5e8a1f"
PRICES = {"input": 10, "cached_input": 1, "output": 100}
USD = ((PROMPT - CACHED) * 10 + CACHED * 1 + OUTPUT * 100) / 1e6
FULL = Refusal("t", 429, "queue_full", "the queue is full", 7.0)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", KEY)


class Leases(StubLeases):
    """With a queue that says whether a replica is ready."""

    ready = True

    async def status(self) -> dict[str, Any]:
        return {"replicas": [{"state": "ready" if self.ready else "starting"}]}


def upstream(url: str, **fields: Any) -> dict[str, Any]:
    return {
        "base_url": f"{url}/v1",
        "api_key": {"env": "UPSTREAM_KEY"},
        "models": {"m": "their-m"},
        "use": "on_overload",
        "usd_per_mtok": PRICES,
        **fields,
    }


@contextlib.asynccontextmanager
async def overflowing(
    folder: Path, *replies: Reply, refusal: Refusal = FULL, ready: bool = True, house_tenants: Any = None, **fields: Any
) -> AsyncIterator[tuple[Porch, ScriptedUpstream]]:
    """A gateway whose queue refuses everything, and an upstream `up`."""
    far = ScriptedUpstream(list(replies) or [whole()])
    leases = Leases([], refusal)
    leases.ready = ready
    sections = {"tenants": house_tenants} if house_tenants else {}
    async with served(far) as url:
        config = configuration(folder, upstreams={"up": upstream(url, **fields)}, **sections)
        async with Porch(config, leases).running() as porch:
            porch.store.add_tenants({name: item.model_dump(mode="json") for name, item in porch.config.tenants.items()})
            yield porch, far


async def ask(porch: Porch, tenant: str = "default", **fields: Any) -> tuple[int, dict[str, Any], Any]:
    """Status, body and headers of a whole answer."""
    async with porch.http(tenant) as http, http.post(CHAT, json=chat(**fields)) as answer:
        return answer.status, orjson.loads(await answer.read()), answer.headers


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


# --- failures ---------------------------------------------------------------------------------------------------------

FAILURES = {
    "500": failing(500),
    "401": failing(401, f"incorrect key {KEY}"),
    "404": failing(404, "no such model"),
    "429": failing(429),
    "400": failing(400, "unknown field"),
    "redirect": Reply(307, headers={"location": "http://127.0.0.1:1/v1/chat/completions"}),
    "page": Reply(parts=[b"<html>"], content_type="text/html"),
    "error as 200": Reply(parts=[b'{"error": {"message": "no"}}']),
    "cut": Reply(parts=[b'{"choices"'], cut=True),
}
STREAM_FAILURES = {
    "error first": Reply(parts=[event({"error": {"message": "no"}})], content_type="text/event-stream"),
    "empty": Reply(content_type="text/event-stream"),
    "only comments": Reply(parts=[b": wait\n\n"], content_type="text/event-stream"),
    "slow": Reply(parts=[], content_type="text/event-stream", hold=True),
    "slow head": Reply(wait_s=0.6),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_who_fails_before_the_first_byte_leaves_our_own_refusal(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with overflowing(tmp_path, FAILURES[name]) as (porch, far):
            status, body, headers = await ask(porch)
            assert (status, body["error"]["code"], headers["retry-after"]) == (429, "queue_full", "7")
            assert len(far.asked) == 1 and KEY not in str(body)
            [record] = await porch.records(1)
    assert (record.deployment, record.upstream_usd, record.status) == ("", 0.0, 429)
    assert KEY not in caplog.text


@pytest.mark.parametrize("name", STREAM_FAILURES)
async def test_a_stream_that_does_not_begin_leaves_our_own_refusal(tmp_path: Path, name: str) -> None:
    async with overflowing(tmp_path, STREAM_FAILURES[name], first_byte_timeout_s=0.3) as (porch, far):
        status, body, _ = await ask(porch, stream=True)
        assert (status, body["error"]["code"], len(far.asked)) == (429, "queue_full", 1)


async def test_the_next_upstream_is_asked(tmp_path: Path) -> None:
    first, second = ScriptedUpstream([failing(500)]), ScriptedUpstream([whole("from further")])
    async with served(first) as a, served(second) as b:
        config = configuration(tmp_path, upstreams={"a": upstream(a), "b": upstream(b)})
        async with Porch(config, Leases([], FULL)).running() as porch:
            status, body, headers = await ask(porch)
            assert (status, headers["x-tribes-upstream"]) == (200, "b")
            assert body["choices"][0]["message"]["content"] == "from further"
            [record] = await porch.records(1)
    assert record.deployment == "upstream:b" and len(first.asked) == 1


async def test_after_the_first_byte_the_stream_ends_with_an_error(tmp_path: Path) -> None:
    async with overflowing(tmp_path, streamed("a", "b", told=False, ends=False, cut=True)) as (porch, far):
        async with porch.http() as http, http.post(CHAT, json=chat(stream=True)) as answer:
            text = await answer.read()
        error = orjson.loads([e for e in text.split(b"\n\n") if e][-1][6:])["error"]
        assert error["code"] == "upstream_failed" and b'"b"' in text and len(far.asked) == 1
        [record] = await porch.records(1)
    assert (record.status, record.deployment) == (502, "upstream:up") and record.upstream_usd > 0


async def test_a_client_that_leaves_ends_the_upstreams_answer_and_pays(tmp_path: Path) -> None:
    reply = streamed("a", told=False, ends=False, hold=True)
    async with overflowing(tmp_path, reply) as (porch, far):
        async with porch.http() as http, http.post(CHAT, json=chat(stream=True)) as answer:
            assert await answer.content.readany()
        await eventually(lambda: far.left == 1)
        [record] = await porch.records(1)
    assert record.status == 499 and record.upstream_usd > 0


async def test_an_upstream_that_keeps_failing_is_left_alone(tmp_path: Path) -> None:
    async with overflowing(tmp_path, failing(500)) as (porch, far):
        for _ in range(8):
            assert (await ask(porch))[0] == 429
        assert len(far.asked) == 5


@pytest.mark.parametrize(
    "reply", [failing(429, retry_after="20"), failing(503, retry_after_ms="20000"), failing(401), failing(402)]
)
async def test_an_upstream_that_is_busy_or_refuses_our_key_is_left_alone_at_once(tmp_path: Path, reply: Reply) -> None:
    async with overflowing(tmp_path, reply) as (porch, far):
        await ask(porch)
        await ask(porch)
        assert len(far.asked) == 1
        async with porch.http() as http, http.get("/tribes/status") as answer:
            [line] = (await answer.json())["upstreams"]
        assert line["upstream"] == "up" and line["closed_for_s"] > 10


async def test_after_a_short_pause_it_is_asked_again(tmp_path: Path) -> None:
    async with overflowing(tmp_path, failing(429, retry_after_ms="200"), whole()) as (porch, far):
        assert (await ask(porch))[0] == 429
        await asyncio.sleep(0.3)
        assert (await ask(porch))[0] == 200 and len(far.asked) == 2


async def test_a_full_upstream_takes_no_more(tmp_path: Path) -> None:
    slow = whole()
    slow.wait_s = 0.5
    async with overflowing(tmp_path, slow, max_concurrent=1) as (porch, far):
        answers = await asyncio.gather(*(ask(porch) for _ in range(3)))
        assert sorted(status for status, _, _ in answers) == [200, 429, 429] and len(far.asked) == 1


async def test_without_its_key_it_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("UPSTREAM_KEY")
    async with overflowing(tmp_path) as (porch, far):
        assert (await ask(porch))[0] == 429 and far.asked == []
    assert "UPSTREAM_KEY" in caplog.text


# --- tenants and money ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "own", "goes"),
    [
        ({"tenants": ["b"]}, {}, False),
        ({"tenants": ["a"]}, {}, True),
        ({}, {"upstreams": "never"}, False),
        ({}, {"upstreams": {"up": "never"}}, False),
        ({}, {"upstreams": {"up": "on_failure"}}, False),
        ({"use": "never"}, {"upstreams": {"*": "on_overload"}}, True),
        ({"use": "on_failure"}, {"upstreams": {"up": {"use": "on_overload"}, "*": "never"}}, True),
    ],
)
async def test_who_may_go_where(tmp_path: Path, fields: dict[str, Any], own: dict[str, Any], goes: bool) -> None:
    tenants = {"a": own, "b": {}}
    async with overflowing(tmp_path, house_tenants=tenants, **fields) as (porch, far):
        assert ((await ask(porch, "a"))[0], len(far.asked)) == ((200, 1) if goes else (429, 0))


def paid(usd: float, name: str = "up", tenant: str = "a", at_s: float | None = None) -> UsageRecord:
    deployment = f"upstream:{name}"
    at_s = time.time() if at_s is None else at_s
    return UsageRecord(
        f"r-{usd}-{name}-{tenant}", tenant, "k", "m", deployment, "online", 1, 0, 1, 0.0, None, 1.0, 200, at_s,
        upstream_usd=usd,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "goes"),
    [
        ([], True),
        ([paid(4.9)], True),
        ([paid(4.99999, tenant="b")], False),
        ([paid(5.0, "another")], True),
        ([paid(5.0, at_s=time.time() - 86400)], True),
    ],
)
async def test_the_budget_of_an_upstream_is_all_tenants(tmp_path: Path, before: list[UsageRecord], goes: bool) -> None:
    """16 tokens and more at 100 dollars a million are more than what is left of 5 dollars in the third case."""
    async with overflowing(tmp_path, usd_per_day=5, house_tenants={"a": {}, "b": {}}) as (porch, far):
        porch.store.add_usage(before)
        assert ((await ask(porch, "a", max_tokens=16))[0], len(far.asked)) == ((200, 1) if goes else (429, 0))


async def test_a_tenant_has_a_budget_of_its_own(tmp_path: Path) -> None:
    tenants = {"a": {"upstreams": {"up": {"usd_per_day": 2}}}, "b": {}}
    async with overflowing(tmp_path, usd_per_day=5, house_tenants=tenants) as (porch, far):
        porch.store.add_usage([paid(1.9999, tenant="a")])
        assert (await ask(porch, "a", max_tokens=16))[0] == 429
        assert (await ask(porch, "b", max_tokens=16))[0] == 200 and len(far.asked) == 1


async def test_requests_that_run_at_once_share_what_is_left(tmp_path: Path) -> None:
    """0.11 dollars are room for one request of at most 1,000 tokens at 100 dollars a million, not for two."""
    slow = whole()
    slow.wait_s = 0.3
    async with overflowing(tmp_path, slow, usd_per_day=0.11) as (porch, far):
        answers = await asyncio.gather(*(ask(porch, max_tokens=1000) for _ in range(3)))
        assert sorted(status for status, _, _ in answers) == [200, 429, 429]
        assert (await ask(porch, max_tokens=1000))[0] == 200  # they came to less than they might have
        assert len(far.asked) == 2


async def test_a_tenant_over_its_own_limits_does_not_escape_to_an_upstream(tmp_path: Path) -> None:
    tenants = {"a": {"limits": {"requests_per_minute": 2}}, "b": {"limits": {"usd_per_day": 1}}}
    async with overflowing(tmp_path, house_tenants=tenants) as (porch, far):
        assert [(await ask(porch, "a"))[0] for _ in range(4)] == [200, 200, 429, 429]
        porch.store.add_usage([paid(1.0, tenant="b")])
        porch.gateway._upstreams._books._tried_at_s = float("-inf")  # what was read is older than what was written
        assert (await ask(porch, "b"))[0] == 429 and len(far.asked) == 2


# --- models of upstreams alone ----------------------------------------------------------------------------------------

ALONE = {"models": {"frontier": "their-m"}, "use": "on_failure"}


async def test_a_model_of_an_upstream_is_a_model_like_others(tmp_path: Path) -> None:
    async with overflowing(tmp_path, **ALONE) as (porch, far):
        models = await porch.openai().models.list()
        assert [model.id for model in models.data] == ["m", "frontier"]
        status, _, headers = await ask(porch, model="frontier", service_tier="flex")
        assert (status, headers["x-tribes-upstream"], headers["x-tribes-class"]) == (200, "up", "semi_online")
        assert porch.leases.tickets == [] and far.asked[0].body["model"] == "their-m"
        [record] = await porch.records(1)
        assert (record.model, record.deployment, record.status) == ("frontier", "upstream:up", 200)


async def test_its_errors_are_the_clients_but_say_nothing_of_ours(tmp_path: Path) -> None:
    async with overflowing(tmp_path, **ALONE) as (porch, far):
        address = str(porch.config.upstreams["up"].base_url)
        host = address.removeprefix("http://").removesuffix("/v1")
        far.replies = [failing(400, f"`temperature` is wrong, says {address} at {host} to {KEY}")]
        status, body, _ = await ask(porch, model="frontier")
        assert (status, body["error"]["type"]) == (400, "invalid_request_error")
        assert "`temperature` is wrong" in body["error"]["message"]
        assert KEY not in str(body) and host not in str(body)


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (failing(500), 502, "upstream_failed"),
        (failing(401, KEY), 503, "upstream_unavailable"),
        (failing(404), 502, "upstream_failed"),
        (failing(429, retry_after="9"), 503, "upstream_unavailable"),
    ],
)
async def test_its_failures_are_said_in_our_words(tmp_path: Path, reply: Reply, status: int, code: str) -> None:
    async with overflowing(tmp_path, reply, **ALONE) as (porch, _):
        got, body, headers = await ask(porch, model="frontier")
        assert (got, body["error"]["code"]) == (status, code) and "retry-after" in headers and KEY not in str(body)


async def test_a_tenant_without_it_does_not_have_the_model(tmp_path: Path) -> None:
    tenants = {"a": {"upstreams": "never"}, "b": {}}
    async with overflowing(tmp_path, house_tenants=tenants, **ALONE) as (porch, far):
        status, body, _ = await ask(porch, "a", model="frontier")
        assert (status, body["error"]["code"], far.asked) == (404, "model_not_found", [])
        assert (await ask(porch, "b", model="frontier"))[0] == 200


async def test_a_tenants_limits_hold_for_it(tmp_path: Path) -> None:
    tenants = {"a": {"limits": {"requests_per_minute": 1}}}
    async with overflowing(tmp_path, house_tenants=tenants, **ALONE) as (porch, _):
        status, _, headers = await ask(porch, "a", model="frontier")
        assert (status, headers["x-ratelimit-remaining-requests"]) == (200, "0")
        status, body, headers = await ask(porch, "a", model="frontier")
        assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded") and int(headers["retry-after"]) > 30
        with pytest.raises(openai.RateLimitError):
            await porch.openai("a").chat.completions.create(model="frontier", messages=chat()["messages"])


async def test_it_runs_nothing_in_the_background(tmp_path: Path) -> None:
    async with overflowing(tmp_path, **ALONE) as (porch, far):
        status, body, _ = await ask(porch, model="frontier", background=True)
        assert (status, body["error"]["param"], far.asked) == (400, "background", [])


async def test_a_path_that_it_does_not_have(tmp_path: Path) -> None:
    async with (
        overflowing(tmp_path, paths=[CHAT], **ALONE) as (porch, far),
        porch.http() as http,
        http.post("/v1/embeddings", json={"model": "frontier", "input": "x"}) as answer,
    ):
        assert (answer.status, far.asked) == (404, [])


async def test_our_own_replicas_are_asked_first(tmp_path: Path, engines: list[Engine]) -> None:
    far = ScriptedUpstream([whole()])
    async with served(far) as url:
        config = configuration(tmp_path, upstreams={"up": upstream(url, wait_s=0.1)})
        async with Porch(config, Leases([engines[0].url])).running() as porch:
            status, body, headers = await ask(porch)
            assert (status, body["model"], far.asked) == (200, "m", []) and "x-tribes-upstream" not in headers

"""Upstreams that fail: what the client hears, what is billed, when they are left alone."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import orjson
import pytest

from serve_apps.gateway.upstreams import answer as answer_module
from tests.unit.serve_apps.harness import CHAT, chat, configuration
from tests.unit.serve_apps.overflow import FULL, KEY, Leases, ask, overflowing, upstream
from tests.unit.serve_apps.porch import Porch
from tests.unit.serve_apps.scripted_upstream import Reply, ScriptedUpstream, event, failing, piece, streamed, whole
from tests.unit.serve_apps.servers import eventually, served

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


async def test_a_stream_that_says_it_failed_has_failed(tmp_path: Path) -> None:
    """Its words may be about our key; and who fails in words again and again is left alone like others."""
    error = event({"error": {"message": f"quota of {KEY} is used up", "code": 500}})
    reply = streamed("a", told=False, ends=False)
    reply.parts += [piece("b") + b"event: error\r\n" + error, event(b"[DONE]")]
    async with overflowing(tmp_path, reply) as (porch, far):
        for _ in range(5):
            async with porch.http() as http, http.post(CHAT, json=chat(stream=True)) as answer:
                text = await answer.read()
            assert b'"a"' in text and b'"b"' in text and KEY.encode() not in text
            last = orjson.loads([e for e in text.split(b"\n\n") if e][-1].removeprefix(b"data: "))
            assert last["error"]["code"] == "upstream_failed"
        assert (await ask(porch))[0] == 429 and len(far.asked) == 5
        records = await porch.records(6)
    assert [(r.status, r.upstream_usd > 0) for r in records] == [(502, True)] * 5 + [(429, False)]


async def test_an_answer_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_module, "MAX_ANSWER_BYTES", 10)
    async with overflowing(tmp_path, whole()) as (porch, far):
        status, body, _ = await ask(porch)
        assert (status, body["error"]["code"], len(far.asked)) == (429, "queue_full", 1)


async def test_a_body_that_cannot_be_written_again_stays_here(tmp_path: Path) -> None:
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    async with overflowing(tmp_path) as (porch, far):
        status, body, _ = await ask(porch, deep=deep)
        assert (status, body["error"]["code"], far.asked) == (429, "queue_full", [])

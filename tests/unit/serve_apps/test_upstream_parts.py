"""The parts of the way to an upstream: events, keys, sums, what errors mean."""

from __future__ import annotations

import asyncio
import email.utils
import os
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from cluster.config import SecretRef, TenantUpstreamConfig, TribesConfig
from cluster.metrics import requests, tally
from cluster.scheduling import TokenUsage
from cluster.state import Store
from serve_apps.gateway.upstreams import answer as answer_module
from serve_apps.gateway.upstreams import books as books_module
from serve_apps.gateway.upstreams import secrets as secrets_module
from serve_apps.gateway.upstreams.answer import UpstreamEvents, UpstreamFailedError
from serve_apps.gateway.upstreams.books import UpstreamBooks
from serve_apps.gateway.upstreams.errors import BUSY_PAUSE_S, retry_after_s
from serve_apps.gateway.upstreams.secrets import NoSecretError, Secret
from serve_apps.gateway.upstreams.spending import LEDGER_LAG_S, UpstreamSpending
from tests.unit.serve_apps.harness import configuration
from tests.unit.serve_apps.scripted_upstream import event, piece, streamed
from tests.unit.state.records import record

TOLD = TokenUsage(10, 4, 7)


def fed(chunks: list[bytes]) -> tuple[bytes, UpstreamEvents]:
    events = UpstreamEvents()
    return b"".join(events.feed(chunk) for chunk in chunks) + events.rest(), events


@given(st.lists(st.integers(0, 400), max_size=8))
def test_events_are_the_same_wherever_they_are_cut(cuts: list[int]) -> None:
    text = b"".join(streamed("a", "b\r\n\r\n: c", 'with "usage": {').parts)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    out, events = fed([text[a:b] for a, b in pairwise(places)])
    assert out == fed([text])[0] and events.usage == TOLD
    written = [e for e in out.split(b"\n\n") if e]
    assert len(written) == 5 and b"\r" not in out and not out.startswith(b":") and b"\n:" not in out
    texts = [orjson.loads(e[6:])["choices"][0]["delta"]["content"] for e in written[:3]]
    assert texts == ["a", "b\r\n\r\n: c", 'with "usage": {']
    assert b'"choices":[]' in written[3] and b'"usage":{"prompt_tokens":10' in written[3]


def test_events_that_say_nothing_about_usage_are_not_rewritten() -> None:
    odd = b'data: {"choices":  [ ] }\n\n'
    out, _ = fed([piece("a"), odd])
    assert out.endswith(odd)


def test_usage_beside_text_and_in_a_response_is_found() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}}
    _, events = fed([event({"choices": [{"delta": {"content": "a"}}], "usage": usage})])
    assert events.usage == TOLD
    response = {"usage": {"input_tokens": 10, "output_tokens": 7, "input_tokens_details": {"cached_tokens": 4}}}
    out, events = fed([b"event: response.completed\r\n" + event({"type": "x", "response": response})])
    assert events.usage == TOLD and out.startswith(b"event: response.completed\ndata: {")


def test_a_stream_that_begins_with_an_error_has_not_begun() -> None:
    with pytest.raises(UpstreamFailedError):
        UpstreamEvents().feed(event({"error": {"message": "no", "code": 500}}))
    events = UpstreamEvents()
    events.feed(piece("a"))
    assert events.feed(event({"error": {"message": "no"}})) == b"" and events.failed


@pytest.mark.parametrize("named", [b"", b"event: error\n"])
def test_what_came_before_an_error_is_passed_on(named: bytes) -> None:
    error = named + event({"error": {"message": "no"}})
    events = UpstreamEvents()
    assert events.feed(piece("a") + piece("b") + error + event(b"[DONE]")).count(b"\n\n") == 2 and events.failed
    quoted = UpstreamEvents()
    quoted.feed(piece("a"))
    assert quoted.feed(piece('\n\ndata: {"error": {')) and not quoted.failed


def test_an_event_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_module, "MAX_EVENT_BYTES", 1000)
    events = UpstreamEvents()
    events.feed(b"data: " + b"x" * 900)
    with pytest.raises(UpstreamFailedError, match="longer"):
        events.feed(b"x" * 200)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": email.utils.formatdate(time.time() + 10000, usegmt=True)}, pytest.approx(9500, abs=501)),
        ({"retry-after": email.utils.formatdate(time.time() - 100, usegmt=True)}, 0.0),
        ({}, BUSY_PAUSE_S),
        ({"retry-after": "soon"}, BUSY_PAUSE_S),
        ({"retry-after": "nan"}, BUSY_PAUSE_S),
        ({"retry-after": "-3"}, BUSY_PAUSE_S),
    ],
)
def test_retry_after_in_all_its_forms(headers: dict[str, str], expected: Any) -> None:
    answer: Any = SimpleNamespace(headers=headers)
    assert retry_after_s(answer) == expected


def test_a_key_comes_from_where_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UP_KEY", " sk-1\n")
    assert Secret(SecretRef(env="UP_KEY")).value() == "sk-1"
    monkeypatch.setenv("UP_KEY", "sk-2")
    secret = Secret(SecretRef(env="UP_KEY"))
    assert secret.value() == "sk-2" and "sk-2" not in repr(secret)
    file = tmp_path / "key"
    file.write_text("sk-3\n")
    from_file = Secret(SecretRef(file=file))
    assert from_file.value() == "sk-3"
    file.write_text("sk-4\n")
    monkeypatch.setattr(secrets_module, "FRESH_S", -1.0)
    assert from_file.value() == "sk-4"


@pytest.mark.parametrize("text", ["", "  \n", "two keys", "sk-1\nsk-2", "schlüssel"])
def test_what_cannot_be_a_key_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    monkeypatch.setitem(os.environ, "UP_KEY", text)
    for ref in (SecretRef(env="UP_KEY"), SecretRef(file=file), SecretRef(file=tmp_path / "none")):
        with pytest.raises(NoSecretError) as caught:
            Secret(ref).value()
        assert not text.strip() or text.strip() not in str(caught.value)


def test_spending_is_what_is_stored_not_stored_yet_and_reserved() -> None:
    spending = UpstreamSpending()
    spending.take({("up", "a"): 1.0, ("up", "b"): 2.0, ("other", "a"): 50.0}, 100.0)
    spending.reserve("up", "a", 0.5)
    assert (spending.usd("up"), spending.usd("up", "a"), spending.usd("up", "b")) == (3.5, 1.5, 2.0)
    spending.settle("up", "a", 0.5, 0.25, 101.0)
    assert (spending.usd("up"), spending.usd("up", "a")) == (3.25, 1.25)
    spending.take({("up", "a"): 1.0, ("up", "b"): 2.0}, 101.0 + LEDGER_LAG_S)  # it may not be in there yet
    assert spending.usd("up", "a") == 1.25
    spending.take({("up", "a"): 1.25, ("up", "b"): 2.0}, 101.1 + LEDGER_LAG_S)
    assert (spending.usd("up", "a"), spending.usd("up")) == (1.25, 3.25)


async def test_while_the_store_is_away_budgets_hold_for_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = {"base_url": "http://x/v1", "models": {"m": "m"}, "usd_per_mtok": {"input": 1, "output": 1}}
    config = TribesConfig.model_validate(configuration(tmp_path, upstreams={"up": upstream}))
    store = Store(config.state.url)
    store.create()
    now_s = 1000.0
    books = UpstreamBooks(store, config, lambda: now_s)
    request: Any = SimpleNamespace(prompt_tokens=1, max_output_tokens=1)

    def code() -> str | None:
        refusal = books.refusal("up", config.upstreams["up"], TenantUpstreamConfig(), "t", request)
        return refusal.code if refusal is not None else None

    assert code() == "store_unavailable"
    await books.look()
    assert code() is None

    def away(*_: object) -> None:
        raise OperationalError("", {}, Exception())

    monkeypatch.setattr(books_module, "read_books", away)
    now_s += books_module.TRUSTED_S
    await books.look()
    assert code() is None
    now_s += 1.0
    await books.look()
    assert code() == "store_unavailable"
    monkeypatch.undo()
    now_s += books_module.FRESH_S + 1.0
    await books.look()
    assert code() is None


async def test_a_store_that_hangs_holds_up_nobody_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TribesConfig.model_validate(configuration(tmp_path))
    books, hangs = UpstreamBooks(Store(config.state.url), config), threading.Event()
    monkeypatch.setattr(books_module, "read_books", lambda *_: hangs.wait(10))
    monkeypatch.setattr(books_module, "READ_TIMEOUT_S", 0.3)
    began_s = time.monotonic()
    await asyncio.gather(*(books.look() for _ in range(3)))
    assert time.monotonic() - began_s >= 0.25
    began_s = time.monotonic()
    for _ in range(10):
        await books.look()
    assert time.monotonic() - began_s < 0.25
    hangs.set()


async def test_what_upstreams_serve_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, tuple[float, dict[str, str]]] = {}

    class Recorder:
        def __init__(self, name: str, *_: object) -> None:
            self.name = name

        def inc(self, value: float, tags: dict[str, str]) -> None:
            seen[self.name] = (value, tags)

        observe = inc

    monkeypatch.setattr(tally, "Counter", Recorder)
    monkeypatch.setattr(tally, "TELL_S", 0.0)
    monkeypatch.setattr(requests, "Histogram", Recorder)
    metrics = requests.RequestMetrics()
    metrics.finished(record(1))
    await asyncio.sleep(0.01)
    assert "tribes_requests_total" in seen and "tribes_upstream_requests_total" not in seen
    metrics.finished(record(2, deployment="upstream:up", upstream_usd=0.5))
    await asyncio.sleep(0.01)
    tags = {"upstream": "up", "model": "m", "tenant": "a"}
    assert seen["tribes_upstream_requests_total"] == (1, tags) and seen["tribes_upstream_usd_total"] == (0.5, tags)

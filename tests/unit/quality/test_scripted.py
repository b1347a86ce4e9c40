"""The comparison over HTTP against the scripted engine, which tells neither token ids nor log-probabilities."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from cluster.cli.quality_run import Asker, Side, compare
from cluster.quality import BUILT_IN, summarise
from tests.support.scripted_engine import Engine
from tests.support.scripted_script import Script

A, B = Side("a", "a", "auto"), Side("b", "b", "auto")


class Router:
    """Two engines behind one address, by model."""

    def __init__(self, engines: dict[str, Engine]) -> None:
        self._engines = engines

    async def handle(self, request: httpx.Request) -> httpx.Response:
        model = b'"a"' if b'"model":"a"' in request.content.replace(b" ", b"") else b'"b"'
        transport = httpx.ASGITransport(app=self._engines[model.decode().strip('"')])
        return await transport.handle_async_request(request)


@pytest.fixture
async def asker() -> AsyncIterator[Asker]:
    engines = {"a": Engine("a", None, Script(tokens=20)), "b": Engine("b", None, Script(tokens=16))}
    transport = httpx.MockTransport(Router(engines).handle)
    async with httpx.AsyncClient(transport=transport, base_url="http://engines") as client:
        yield Asker(client, "k", 64, 5)


async def test_an_engine_agrees_with_itself(asker: Asker) -> None:
    found = await compare(asker, A, A, BUILT_IN, concurrency=4)
    summary = summarise(found.differences)
    assert not found.failures and summary.prompts == len(BUILT_IN)
    assert (summary.exact_match.mean, summary.token_agreement.mean) == (1.0, 1.0)


async def test_an_engine_that_stops_sooner_differs_by_what_is_missing(asker: Asker) -> None:
    summary = summarise((await compare(asker, A, B, BUILT_IN[:5])).differences)
    assert summary.exact_match.mean == 0.0
    assert summary.token_agreement.mean == pytest.approx(16 / 20)
    assert summary.first_divergence_median == 16
    assert (summary.unit, summary.method) == ("word", "none")

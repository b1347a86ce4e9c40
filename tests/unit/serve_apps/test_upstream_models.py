"""Models that no deployment of ours serves: an upstream alone has them."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from tests.unit.serve_apps.harness import CHAT, chat
from tests.unit.serve_apps.overflow import KEY, ask, overflowing
from tests.unit.serve_apps.scripted_upstream import Reply, failing

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


async def test_its_error_may_come_in_pieces(tmp_path: Path) -> None:
    reply = failing(400, "`temperature` is wrong")
    [body] = reply.parts
    reply.parts = [body[:20], body[20:]]
    async with overflowing(tmp_path, reply, **ALONE) as (porch, _):
        status, said, _ = await ask(porch, model="frontier")
        assert (status, said["error"]["message"]) == (400, "`temperature` is wrong")

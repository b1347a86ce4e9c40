"""Running accepted work without a client: same queue, same bill, one record per id."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from cluster.config import TribesConfig
from cluster.scheduling import Refusal, TokenUsage
from cluster.state import Store, UsageRecord
from cluster.vocabulary import RequestClass
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.engine_client import EngineClient
from serve_apps.gateway.headless import Headless, Outcome
from serve_apps.gateway.upstreams.routes import Upstreams
from tests.unit.serve_apps.harness import CHAT, chat, configuration
from tests.unit.serve_apps.odd_engine import OddEngine
from tests.unit.serve_apps.porch import StubLeases
from tests.unit.serve_apps.scripted_upstream import ScriptedUpstream, whole
from tests.unit.serve_apps.servers import Engine, eventually, served

CALLER = Caller("a", "k", "flex")


class Bench:
    """A worker's surroundings."""

    def __init__(self, folder: Path, *urls: str, refusal: Refusal | None = None, **sections: Any) -> None:
        self.config = TribesConfig.model_validate(configuration(folder, **sections))
        self.leases = StubLeases(list(urls), refusal)
        self.store = Store(self.config.state.url)
        self.store.create()
        self.billed: list[UsageRecord] = []

    async def run(
        self, body: Any, path: str = CHAT, request_class: RequestClass = RequestClass.SEMI_ONLINE, **kwargs: Any
    ) -> Outcome:
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        fields = {"request_id": "work-1", "deadline_at_s": None, **kwargs}
        async with EngineClient(5, 60) as client:
            upstreams = Upstreams(self.config, self.store, accepted_work=True)
            await upstreams.start()
            headless = Headless(client, self.config, self.billed.append, upstreams)
            try:
                return await headless.run(path, raw, CALLER, self.leases, request_class=request_class, **fields)  # type: ignore[arg-type]
            finally:
                await upstreams.close()


PATHS = [
    (CHAT, chat("x" * 100, max_tokens=3), "choices"),
    ("/v1/completions", {"model": "m", "prompt": "x" * 100, "max_tokens": 3}, "choices"),
    ("/v1/responses", {"model": "m", "input": "x" * 100, "max_output_tokens": 3}, "output"),
]


@pytest.mark.parametrize(("path", "body", "field"), PATHS)
@pytest.mark.parametrize("extra", [{}, {"stream": True, "stream_options": {"include_usage": True}, "background": True}])
async def test_an_answer_is_whole_and_billed(
    tmp_path: Path, engines: list[Engine], path: str, body: dict[str, Any], field: str, extra: dict[str, Any]
) -> None:
    bench = Bench(tmp_path, engines[0].url)
    outcome = await bench.run({**body, **extra}, path)
    answer = orjson.loads(outcome.body)
    assert (outcome.status, outcome.request_id) == (200, "work-1") and answer[field]
    assert answer["service_tier"] == "flex"
    [row] = bench.billed
    assert outcome.usage == TokenUsage(row.prompt_tokens, row.cached_tokens, 3) == bench.leases.released[0]
    assert (row.request_id, row.tenant, row.key_id, row.request_class) == ("work-1", "a", "k", "semi_online")


async def test_embeddings(tmp_path: Path, engines: list[Engine]) -> None:
    outcome = await Bench(tmp_path, engines[0].url).run({"model": "m", "input": ["a", "b"]}, "/v1/embeddings")
    assert len(orjson.loads(outcome.body)["data"]) == 2


async def test_the_ticket(tmp_path: Path, engines: list[Engine]) -> None:
    deployment = {"serves": ["semi_online", "offline"]}
    bench = Bench(tmp_path, engines[0].url, deployment=deployment)
    outcome = await bench.run(chat(service_tier="priority"), request_class=RequestClass.OFFLINE, deadline_at_s=9e9)
    [ticket] = bench.leases.tickets
    assert (ticket.request_class, ticket.deadline_at_s) == (RequestClass.OFFLINE, 9e9)
    assert (ticket.tenant, ticket.key, ticket.ticket_id) == ("a", "k", "work-1.1@gw-1")
    assert orjson.loads(outcome.body).get("service_tier") is None  # no tier that clients know
    assert ticket.expires_at_s == pytest.approx(9e9)


async def test_nobody_is_connected_so_the_classs_bound_on_waiting_does_not_hold(
    tmp_path: Path, engines: list[Engine]
) -> None:
    bench = Bench(tmp_path, engines[0].url, scheduling={"classes": {"semi_online": {"max_wait_s": 1}}})
    await bench.run(chat())
    [ticket] = bench.leases.tickets
    assert ticket.expires_at_s is not None and ticket.expires_at_s - ticket.arrived_at_s > 1000


async def test_offline_work_without_such_a_deployment_runs_in_the_least_urgent_class(
    tmp_path: Path, engines: list[Engine]
) -> None:
    bench = Bench(tmp_path, engines[0].url)
    await bench.run(chat(), request_class=RequestClass.OFFLINE)
    assert bench.leases.tickets[0].request_class is RequestClass.SEMI_ONLINE


@pytest.mark.parametrize(("status", "code"), [(429, "queue_full"), (503, "queue_timeout")])
async def test_a_refusal_is_an_outcome_and_not_billed(tmp_path: Path, status: int, code: str) -> None:
    bench = Bench(tmp_path, refusal=Refusal("t", status, code, "no", 1.0))
    outcome = await bench.run(chat())
    assert (outcome.status, orjson.loads(outcome.body)["error"]["code"]) == (status, code)
    assert outcome.worth_another_run and outcome.usage is None and bench.billed == []


@pytest.mark.parametrize(
    ("body", "path", "status", "code"),
    [
        (b"{", CHAT, 400, "invalid_json"),
        (b"{}", CHAT, 400, "missing_model"),
        ({"model": "none"}, CHAT, 404, "model_not_found"),
        (chat(), "/v1/models", 400, "invalid_url"),
        (chat(cache_salt=1), CHAT, 400, "invalid_cache_salt"),
    ],
)
async def test_bad_work(tmp_path: Path, body: Any, path: str, status: int, code: str) -> None:
    bench = Bench(tmp_path)
    outcome = await bench.run(body, path)
    assert (outcome.status, orjson.loads(outcome.body)["error"]["code"]) == (status, code)
    assert not outcome.worth_another_run and bench.leases.tickets == []


async def test_what_the_engine_refuses_ends_the_work(tmp_path: Path, engines: list[Engine]) -> None:
    bench = Bench(tmp_path, engines[0].url)
    outcome = await bench.run(chat("word " * 5000))
    assert outcome.status == 400 and orjson.loads(outcome.body)["error"]["code"] == "context_length_exceeded"
    assert [(r.status, r.prompt_tokens, r.output_tokens) for r in bench.billed] == [(400, 0, 0)]


async def test_failing_replicas_are_replaced_and_in_the_end_reported(tmp_path: Path, engines: list[Engine]) -> None:
    async with served(OddEngine(status=500)) as bad:
        bench = Bench(tmp_path, bad, engines[0].url, bad)
        bench.leases.urls = [engines[0].url, bad]  # the second in turn comes first
        assert (await bench.run(chat(max_tokens=2))).status == 200
        assert bench.leases.released[0] is None and len(bench.billed) == 1
        bench.leases.urls = [bad]
        outcome = await bench.run(chat(), request_id="work-2")
    assert (outcome.status, orjson.loads(outcome.body)["error"]["code"]) == (502, "replica_failed")
    assert outcome.worth_another_run and len(bench.billed) == 1


async def test_cancelling_aborts_the_engines_request_and_bills_nothing(tmp_path: Path, engines: list[Engine]) -> None:
    before = await engines[0].stats()
    bench = Bench(tmp_path, engines[0].url)
    task = asyncio.create_task(bench.run(chat(x_script={"hang_after_tokens": 1})))

    async def running() -> bool:
        return (await engines[0].stats())["running"] == before["running"] + 1

    await eventually(running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async def aborted() -> bool:
        return (await engines[0].stats())["aborted"] == before["aborted"] + 1

    await eventually(aborted)
    assert bench.billed == [] and len(bench.leases.released) == 1


@pytest.mark.parametrize(("accepted_work", "status"), [(False, 429), (True, 200)])
async def test_accepted_work_goes_upstream_only_where_that_is_said(
    tmp_path: Path, accepted_work: bool, status: int
) -> None:
    far = ScriptedUpstream([whole()])
    async with served(far) as url:
        upstream = {
            "base_url": f"{url}/v1",
            "models": {"m": "their-m"},
            "use": "on_overload",
            "accepted_work": accepted_work,
            "usd_per_mtok": {"input": 1, "output": 1},
        }
        bench = Bench(tmp_path, refusal=Refusal("t", 429, "queue_full", "no", 1.0), upstreams={"up": upstream})
        outcome = await bench.run(chat())
    assert (outcome.status, len(far.asked)) == (status, int(accepted_work))
    assert [record.deployment for record in bench.billed] == (["upstream:up"] if accepted_work else [])

"""What is done about failing replicas is counted, and nothing where nothing fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config import TribesConfig
from cluster.metrics import failover
from cluster.vocabulary import RequestClass
from serve_apps.deferred.deployment import make_runner
from serve_apps.deferred.runner import Request
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.courses.replica_health import ReplicaHealth
from serve_apps.gateway.engine_client import EngineClient
from tests.unit.serve_apps.harness import CHAT, Sink, chat, configuration
from tests.unit.serve_apps.mortal_engine import Fate, MortalEngine, cuts
from tests.unit.serve_apps.porch import StubLeases
from tests.unit.serve_apps.servers import served
from tests.unit.serve_apps.test_going_on import gateway_to, read

NO_RETRIES = {"retries": {"share": 0, "floor_per_s": 0}}
HEDGE = {"hedge": {"after_s": 0.15, "max_share": 1.0}}
SAMPLED_JSON = {"response_format": {"type": "json_object"}, "temperature": 1}


@pytest.mark.parametrize(
    ("fates", "asked", "gateway", "events"),
    [
        ([], {}, {}, []),
        (cuts(0), {}, {}, ["retry"]),
        (cuts(0), {}, {"breaker": {"failures": 1}}, ["breaker_opened", "retry"]),
        (cuts(600), {}, {}, ["continuation"]),
        (cuts(700), SAMPLED_JSON, {}, []),  # it cannot go on, so it takes nothing of the budget
        (cuts(600), {}, {"max_continuations": 0}, []),
        ([Fate("cut", delay_s=5)], {}, HEDGE, ["hedge", "hedge_won"]),
        ([], {}, HEDGE, []),
    ],
)
async def test_what_is_done_is_told(
    tmp_path: Path, fates: list[Fate | None], asked: dict[str, Any], gateway: dict[str, Any], events: list[str]
) -> None:
    async with gateway_to(tmp_path, MortalEngine(fates), MortalEngine(), gateway=gateway) as porch:
        await read(porch, max_tokens=9, **asked)
        await porch.records(1)
        assert porch.sink.events == events


async def test_a_refused_retry_is_told(tmp_path: Path) -> None:
    dying = MortalEngine(cuts(0))
    async with gateway_to(tmp_path, dying, MortalEngine(), gateway=NO_RETRIES) as porch, porch.http() as http:
        async with http.post(CHAT, json=chat(stream=True)) as answer:
            assert answer.status == 502
        assert porch.sink.events == ["retry_refused"]


def test_what_a_budget_refuses_is_told(tmp_path: Path) -> None:
    events: list[tuple[str, str]] = []
    gateway = {**NO_RETRIES, "hedge": {"after_s": 1, "max_share": 0.1}}
    config = TribesConfig.model_validate(configuration(tmp_path, gateway=gateway))
    health = ReplicaHealth(config, "m", lambda model, event: events.append((model, event)))
    assert not health.may_retry(begun=True)
    assert [health.may_hedge(), health.may_hedge()] == [True, False]  # the floor, and no more
    assert events == [("m", "continuation_refused"), ("m", "hedge"), ("m", "hedge_refused")]


async def test_a_workers_retries_are_told(tmp_path: Path) -> None:
    config = TribesConfig.model_validate(configuration(tmp_path))
    sink = Sink()
    async with served(MortalEngine(cuts(0))) as url, EngineClient(5, 60) as client:
        leases: Any = {"m": StubLeases([url])}
        runner = make_runner(config, client, leases, sink, None, sink.happened)
        body = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
        caller = Caller("default", "k")
        answer = await runner.run(Request("r", CHAT, "m", body, caller, RequestClass.ONLINE, None))
    assert (answer.status, sink.events) == (200, ["retry"])


def test_it_is_one_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Counter:
        def __init__(self, *about: Any) -> None:
            seen.append(about)

        def inc(self, value: float, tags: dict[str, str]) -> None:
            seen.append((value, tags))

    monkeypatch.setattr(failover, "Counter", Counter)
    failover.FailoverMetrics().happened("m", "retry")
    (name, _, keys), counted = seen
    assert (name, keys) == ("tribes_failover_total", ("model", "event"))
    assert counted == (1, {"model": "m", "event": "retry"})

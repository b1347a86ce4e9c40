"""The live policies on simulated replicas."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest

from cluster.config import TribesConfig
from cluster.simulation import Engine, ReplicaModel, Request, StepModel
from cluster.simulation.fleet import serve
from cluster.simulation.results import SimulationResult
from cluster.simulation.settings import EngineSettings, Settings, SettingsError, StepSettings
from cluster.simulation.simulate import simulate
from cluster.simulation.workload import Lengths, TenantLoad, Trace, draw
from cluster.vocabulary import RequestClass

STEP = {"base_s": 0.01, "prefill_s_a_token": 1e-4, "decode_s_a_request": 1e-4, "decode_s_a_kv_token": 1e-7}


def config(replicas: dict[str, Any], serves: tuple[str, ...] = ("online",), **more: Any) -> TribesConfig:
    deployment = {
        "model": "m",
        "serves": list(serves),
        "engine": {"kind": "vllm"},
        "replicas": replicas,
        "max_running": more.pop("max_running", 8),
        "pool": "gpu",
    }
    return TribesConfig.model_validate(
        {
            "models": {"m": {"source": {"kind": "huggingface", "id": "org/m"}}},
            "deployments": {"d": deployment},
            "pools": {"gpu": {"usd_per_hour": 3.6}},
            **more,
        }
    )


def settings(**more: Any) -> Settings:
    return Settings(engines={"*": EngineSettings(step=StepSettings(**STEP), kv_tokens=50_000, **more)})


def trace(rate: float = 8.0, seconds: float = 60.0, seed: int = 1, **tenants: float) -> Trace:
    loads = [
        TenantLoad(name, rate * share, Lengths(200), Lengths(60))
        for name, share in (tenants or {"default": 1.0}).items()
    ]
    return draw(loads, seconds, seed)


def ended(result: SimulationResult) -> int:
    return sum(g.finished + sum(g.refused.values()) for g in result.classes.values())


def test_every_request_ends_once_and_a_seed_fixes_everything() -> None:
    load = trace(rate=30, a=0.5, b=0.5)
    given = settings(mean_time_to_failure_s=20, cold_starts=[{"name": "cold", "seconds": 5}])
    results = [simulate(config({"min": 2, "max": 4}), given, load, seed=s) for s in (3, 3, 4)]
    assert all(ended(result) == len(load.requests) for result in results)
    assert results[0] == results[1] != results[2]
    assert results[0].deployments["d"].failures > 0
    assert all(r.finished_s < 0 for r in load.requests)  # the trace itself is untouched


def test_one_replica_without_a_queue_is_the_replica_alone() -> None:
    """With slots for everybody the queue adds nothing."""
    load = trace(rate=5)
    result = simulate(config({"min": 1, "max": 1}, max_running=500), settings(), load)
    alone = [Request(r.number, r.arrived_s, r.prompt_tokens, r.output_tokens) for r in load.requests]
    serve(ReplicaModel(Engine(StepModel(*STEP.values()), 50_000)), alone)
    online = result.classes["online"]
    assert online.e2e is not None and online.ttft is not None
    assert online.e2e.mean == pytest.approx(fmean(r.e2e_s for r in alone))
    assert online.ttft.mean == pytest.approx(fmean(r.ttft_s for r in alone))


def test_from_zero_the_first_request_waits_for_a_cold_start() -> None:
    given = settings(cold_starts=[{"name": "cold", "seconds": 12}])
    one = Trace([Request(0, 3.0, 100, 10)], None)
    result = simulate(config({"min": 0, "max": 2}), given, one)
    wait = result.classes["online"].wait
    assert wait is not None and 12.0 <= wait.mean <= 12.6
    deployment = result.deployments["d"]
    assert deployment.starts == {"cold": 1} and deployment.most_replicas == 1
    # Paid from its start on, the cold start included.
    assert deployment.usd == pytest.approx((result.seconds - 3.0) / 3600 * 3.6, abs=1e-3)


def test_the_best_rung_is_taken_while_it_is_there() -> None:
    rungs = [{"name": "forked", "seconds": 2, "standby": 1}, {"name": "cold", "seconds": 20}]
    load = trace(rate=60, seconds=60)
    result = simulate(config({"min": 0, "max": 6}), settings(cold_starts=rungs), load)
    starts = result.deployments["d"].starts
    assert starts["forked"] >= 1 and starts["cold"] >= 1


def test_it_grows_under_load_and_shrinks_after() -> None:
    load = trace(rate=40, seconds=120)
    load.requests.append(Request(len(load.requests), 600.0, 10, 10))
    given = settings(cold_starts=[{"name": "cold", "seconds": 5}])
    bounds = {"min": 1, "max": 8, "idle_timeout_s": 20}
    deployment = simulate(config(bounds), given, load).deployments["d"]
    assert deployment.most_replicas > 1
    assert deployment.timeline[-1][1] == 1


def test_a_request_goes_on_elsewhere_when_its_replica_dies() -> None:
    given = settings(mean_time_to_failure_s=15, cold_starts=[{"name": "cold", "seconds": 1}])
    load = Trace([Request(n, 0.5 * n, 50, 400) for n in range(60)], None)
    result = simulate(
        config({"min": 3, "max": 3}, gateway={"max_attempts": 8, "max_continuations": 8}), given, load, seed=2
    )
    online = result.classes["online"]
    assert result.deployments["d"].failures > 2
    assert online.finished == 60 and online.output_tokens == 60 * 400


def test_lost_too_often_is_a_refusal() -> None:
    given = settings(mean_time_to_failure_s=2, cold_starts=[{"name": "cold", "seconds": 0.1}])
    load = Trace([Request(n, 0.0, 50, 900) for n in range(20)], None)
    result = simulate(config({"min": 2, "max": 2}, gateway={"max_attempts": 1, "max_continuations": 0}), given, load)
    assert result.classes["online"].refused["replica_lost"] > 0


def test_weights_share_what_is_scarce() -> None:
    tenants = {"big": {"weight": 3}, "small": {"weight": 1}}
    classes = {"online": {"max_wait_s": 20, "max_queued": 100_000}}
    scarce = config({"min": 1, "max": 1}, tenants=tenants, scheduling={"classes": classes, "max_queued": None})
    result = simulate(scarce, settings(), trace(rate=80, seconds=120, big=0.5, small=0.5))
    served = {name: g.output_tokens + g.prompt_tokens for name, g in result.tenants["online"].items()}
    assert served["big"] / served["small"] == pytest.approx(3, rel=0.2)
    assert result.fairness["online"].jain > 0.9
    assert result.classes["online"].attainment < 0.5


def test_online_goes_before_offline() -> None:
    load = trace(rate=20, seconds=60)
    for request in load.requests[::2]:
        request.request_class = RequestClass.OFFLINE
    result = simulate(config({"min": 1, "max": 1}, ("online", "offline")), settings(), load)
    online, offline = (result.classes[c].wait for c in ("online", "offline"))
    assert online is not None and offline is not None and online.mean < offline.mean / 2


def test_sessions_find_their_cache() -> None:
    """Turns of 63 chats over four replicas: with their sessions known, most of the prompt is cached."""
    rng = random.Random(5)
    requests = []
    for number in range(630):
        chat, turn = number % 63, number // 63
        blocks = tuple(1000 * chat + place for place in range(2 + turn))
        requests.append(
            Request(
                number,
                number * 0.1 + rng.random() * 0.05,
                512 * len(blocks) + 20,
                30,
                blocks=blocks,
                session=f"c{chat}",
            )
        )
    load = Trace(requests, 512)
    roomy = replace_engine(settings(), kv_tokens=1_000_000)
    named = simulate(config({"min": 4, "max": 4}), roomy, load).classes["online"]
    for request in requests:
        request.session = None
    unnamed = simulate(config({"min": 4, "max": 4}), roomy, load).classes["online"]
    assert named.hit_rate > 0.75 > unnamed.hit_rate + 0.1


def replace_engine(given: Settings, **changes: Any) -> Settings:
    return given.model_copy(update={"engines": {"*": given.engines["*"].model_copy(update=changes)}})


def test_what_no_engine_can_hold_is_refused_and_counts_as_a_miss() -> None:
    load = Trace([Request(0, 0.0, 60_000, 10), Request(1, 0.1, 100, 10)], None)
    online = simulate(config({"min": 1, "max": 1}), settings(), load).classes["online"]
    assert online.refused == {"context_length_exceeded": 1} and online.finished == 1 and online.attainment == 0.5


def test_an_engine_is_what_settings_arguments_and_profile_say_in_that_order() -> None:
    made = config({"min": 1, "max": 1})
    engine = {"kind": "vllm", "args": {"max_num_seqs": 7, "max-num-batched-tokens": 512}}
    deployment = made.deployments["d"].model_copy(
        update={"engine": made.deployments["d"].engine.model_validate(engine)}
    )
    given = Settings(engines={"d": EngineSettings(profile="llama-2-7b-a10g", max_num_seqs=9)})
    got = given.engine("d", deployment, 512)
    assert (got.max_num_seqs, got.max_num_batched_tokens, got.kv_tokens, got.block_tokens) == (9, 512, 10_000, 512)
    with pytest.raises(SettingsError, match="--engine"):
        Settings().engine("d", deployment, None)
    with pytest.raises(SettingsError, match="the engines are"):
        Settings(engines={"*": EngineSettings(profile="none")}).engine("d", deployment, None)


def test_a_model_must_be_named_where_there_are_several() -> None:
    with pytest.raises(SettingsError, match="no deployment serves 'x'"):
        simulate(config({"min": 1, "max": 1}), settings(), trace(), model="x")


def test_results_are_plain_data() -> None:
    result = simulate(config({"min": 1, "max": 1}), settings(), trace(rate=2, seconds=20))
    assert (
        replace(result, name="x").name == "x" and result.rates.arrived and sum(result.rates.arrived) == result.requests
    )

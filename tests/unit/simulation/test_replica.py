"""A replica with jumps: the same as step by step, as closed forms, and nothing lost."""

from __future__ import annotations

import math
import random
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.simulation import Engine, ReplicaModel, Request, StepModel
from cluster.simulation.fleet import serve
from tests.unit.simulation.oracle import Oracle

# Parts of a second that floats hold exactly: then sums do not depend on their order, and equal is equal.
STEP = StepModel(8 / 1024, 3 / 65536, 5 / 65536, 1 / 1048576)
BLOCK = 4


@st.composite
def loads(draw: st.DrawFn) -> tuple[Engine, list[Request]]:
    engine = Engine(
        STEP,
        kv_tokens=BLOCK * draw(st.integers(10, 30)),
        block_tokens=BLOCK,
        max_num_seqs=draw(st.integers(1, 6)),
        max_num_batched_tokens=draw(st.integers(1, 32)),
        prefix_caching=draw(st.booleans()),
    )
    requests = []
    at = 0
    for number in range(draw(st.integers(1, 12))):
        at += draw(st.integers(0, 60))
        prompt = draw(st.integers(1, 25))
        output = draw(st.integers(1, 15))
        family, depth = draw(st.integers(0, 2)), draw(st.integers(0, 6))
        blocks = tuple(100 * family + place for place in range(min(depth, prompt // BLOCK)))
        requests.append(Request(number, at / 1024, prompt, output, blocks=blocks, priority=draw(st.integers(0, 2))))
    return engine, requests


@settings(max_examples=400, deadline=None)
@given(loads())
def test_equals_step_by_step(load: tuple[Engine, list[Request]]) -> None:
    engine, requests = load
    oracle = Oracle(engine)
    oracle.run(requests)
    serve(ReplicaModel(engine), requests)
    got = {r.number: (r.first_token_s, r.finished_s, r.cached_tokens, r.preemptions) for r in requests}
    assert got == oracle.ends


def test_the_oracle_is_put_to_the_test() -> None:
    """Loads as above do preempt, hit the cache, cut prompts and wait: else their agreement would say little."""
    rng = random.Random(1)
    preempted = hits = waits = 0
    for _ in range(30):
        engine = Engine(STEP, 60, BLOCK, max_num_seqs=4, max_num_batched_tokens=16)
        requests = [Request(n, n / 256, rng.randint(1, 25), rng.randint(1, 15), blocks=()) for n in range(10)]
        for request in requests:
            request.blocks = tuple(range(min(3, request.prompt_tokens // BLOCK)))
        model = ReplicaModel(engine)
        serve(model, requests)
        preempted += model.preemptions
        hits += sum(r.cached_tokens for r in requests)
        waits += sum(r.ttft_s > 0.1 for r in requests)
        assert model.idle and model.end_s == math.inf
    assert preempted > 10 and hits > 100 and waits > 10


def queue(engine: Engine, gap_s: float, prompts: list[int], seed: int) -> list[Request]:
    """Poisson arrivals, one token each."""
    rng = random.Random(seed)
    at_s, requests = 0.0, []
    for number, prompt in enumerate(prompts):
        at_s += rng.expovariate(1 / gap_s)
        requests.append(Request(number, at_s, prompt, 1))
    serve(ReplicaModel(engine), requests)
    return requests


ONE_AT_A_TIME = Engine(StepModel(0.0, 1e-6, 1e-9, 0.0), 10**9, 16, 1, 10**9, prefix_caching=False)


def test_m_m_1() -> None:
    """Time in the system of M/M/1 is 1 / (mu - lambda)."""
    rng = random.Random(7)
    prompts = [max(1, round(rng.expovariate(1) * 1e6)) for _ in range(60_000)]
    requests = queue(ONE_AT_A_TIME, 1 / 0.6, prompts, 3)
    assert fmean(r.e2e_s for r in requests) == pytest.approx(1 / (1 - 0.6), rel=0.06)


def test_m_d_1() -> None:
    """Waiting time of M/D/1 is rho / (2 mu (1 - rho))."""
    requests = queue(ONE_AT_A_TIME, 1 / 0.7, [10**6] * 60_000, 5)
    assert fmean(r.e2e_s - 1.0 for r in requests) == pytest.approx(0.7 / (2 * (1 - 0.7)), rel=0.06)


def test_one_request_alone_takes_the_sum_of_its_steps() -> None:
    engine = Engine(STEP, 1600, 16, max_num_batched_tokens=100)
    request = Request(0, 1.0, 250, 40)
    serve(ReplicaModel(engine), [request])
    prefill_s = STEP.step_s(100, 0, 0) * 2 + STEP.step_s(50, 0, 0)
    decode_s = sum(STEP.step_s(0, 1, 250 + k) for k in range(39))
    assert request.ttft_s == prefill_s and request.e2e_s == prefill_s + decode_s
    assert request.tpot_s == decode_s / 39


def test_progress_counts_whole_steps() -> None:
    model = ReplicaModel(Engine(STEP, 1600, 16))
    request = Request(0, 0.0, 16, 50)
    model.give(request, 0.0)
    model.step()
    model.step()  # the prefill
    begin_s = request.first_token_s
    for steps in (1, 7, 30):
        boundary_s = begin_s + STEP.jump_s(steps, 1, 16)
        assert list(model.progress(boundary_s)) == [(request, 1 + steps)]
        assert list(model.progress(boundary_s - 1e-4)) == [(request, steps)]


def test_a_replica_that_dies_gives_back_what_it_had_with_its_tokens() -> None:
    model = ReplicaModel(Engine(STEP, 1600, 16, max_num_seqs=1))
    requests = [Request(number, 0.0, 16, 50) for number in range(2)]
    for request in requests:
        model.give(request, 0.0)
    model.step()
    model.step()
    now_s = requests[0].first_token_s + STEP.jump_s(9, 1, 16)
    assert model.abandon(now_s) == requests
    assert [r.produced for r in requests] == [10, 0]
    assert model.idle and model.end_s == math.inf
    other = ReplicaModel(Engine(STEP, 1600, 16))
    other.give(requests[0], now_s)
    while other.end_s < math.inf:
        other.step()
    assert requests[0].finished_s == pytest.approx(now_s + STEP.step_s(26, 0, 0) + STEP.jump_s(39, 1, 26))


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="raise kv_tokens"):
        ReplicaModel(Engine(STEP, 64, 16)).give(Request(0, 0.0, 60, 10), 0.0)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 500), st.integers(0, 10**5), st.floats(0, 50))
def test_steps_until_is_the_first_boundary(n: int, kv_tokens: int, seconds: float) -> None:
    model = StepModel(0.01, 1e-4, 2e-4, 1e-7)
    steps = model.steps_until(seconds, n, kv_tokens)
    assert model.jump_s(steps, n, kv_tokens) >= seconds
    assert steps == 1 or model.jump_s(steps - 1, n, kv_tokens) < seconds

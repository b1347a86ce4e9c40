"""The engine model loses nothing, holds no more than its pool, and takes the time that its formula says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fairness_sides.engine_model import Engine, EngineModel, Running, needed_tokens
from benchmarks.fairness_sides.policies import Fifo, RateLimit, RoundRobin, TokenCounters
from benchmarks.fairness_sides.workload import Request, poisson, steady

POOL = 1000


class Watched(Fifo):
    """FIFO that keeps an eye on the engine."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0
        self.most_held = 0
        self._held: dict[int, int] = {}
        self._now_s = 0.0

    def admit(self, request: Request, now_s: float) -> None:
        super().admit(request, now_s)
        assert now_s >= max(self._now_s, request.arrived_at_s)
        self._now_s = now_s

    def produced(self, running: Sequence[Running], now_s: float) -> None:
        self.tokens += len(running)
        # The token made last is not in the cache yet: the next step puts it there.
        self._held |= {one.request.number: one.held - 1 for one in running}
        self.most_held = max(self.most_held, sum(self._held.values()))

    def finish(self, request: Request, now_s: float) -> None:
        del self._held[request.number]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), rate=st.floats(0.5, 20))
def test_every_token_is_produced_once_and_the_pool_holds(seed: int, rate: float) -> None:
    requests = poisson({"a": rate, "b": rate}, 20.0, (1, 200), (1, 200), seed)
    watched = Watched()
    course = EngineModel(watched, Engine(pool_tokens=POOL)).run(requests)
    assert sorted(r.request.number for r in course.served) == [r.number for r in requests]
    assert watched.tokens == sum(r.output_tokens for r in requests)
    assert watched.most_held <= POOL
    for one in course.served:
        assert one.request.arrived_at_s <= one.admitted_at_s < one.first_token_at_s <= one.finished_at_s
        assert one.produced == one.request.output_tokens


@pytest.mark.parametrize("policy", [Fifo, RoundRobin, TokenCounters, lambda: RateLimit(5)])
def test_served_and_refused_are_everything(policy: type[Fifo]) -> None:
    requests = steady({"a": 3.0, "b": 1.0}, 30.0, 50, 20)
    course = EngineModel(policy()).run(requests)
    seen = [*(r.request.number for r in course.served), *(r.number for r in course.refused)]
    assert sorted(seen) == [r.number for r in requests]


def test_the_time_of_a_lonely_request() -> None:
    prompt, output = 300, 50
    (one,) = EngineModel(Fifo()).run([Request(0, "a", 5.0, prompt, output)]).served
    first_s = 5.0 + 0.215e-3 * prompt
    assert one.first_token_at_s == pytest.approx(first_s)
    decode_s = sum(16.3e-3 + 0.245e-3 + 2.02e-6 * (prompt + n) for n in range(1, output))
    assert one.finished_at_s == pytest.approx(first_s + decode_s)


def test_it_looks_for_work_after_ten_steps_of_decoding() -> None:
    requests = [Request(0, "a", 0.0, 10, 100), Request(1, "b", 0.01, 10, 5)]
    served = {r.request.number: r for r in EngineModel(Fifo()).run(requests).served}
    step_s = 16.3e-3 + 0.245e-3
    waited_s = served[1].admitted_at_s - served[0].first_token_at_s
    assert waited_s == pytest.approx(10 * step_s, rel=0.02)


def test_tokens_per_second_counts_input_and_output() -> None:
    course = EngineModel(Fifo()).run([Request(0, "a", 0.0, 30, 12)])
    assert course.tokens_per_s == pytest.approx(42 / course.end_s)


def test_need_of_a_batch_by_hand() -> None:
    # The one with 2 left ends holding 22; then the other holds 12 of its final 15.
    assert needed_tokens([(5, 10), (2, 20)]) == 34
    assert needed_tokens([]) == 0


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60)), min_size=1, max_size=8))
def test_need_is_the_most_that_is_ever_held(batch: list[tuple[int, int]]) -> None:
    held = [sum(h + step for left, h in batch if left >= step) for step in range(41)]
    assert needed_tokens(batch) == max(held)


def test_a_request_larger_than_the_pool_is_an_error_not_a_loop() -> None:
    with pytest.raises(ValueError, match="does not fit into an empty pool of 1000 tokens"):
        EngineModel(Fifo(), Engine(pool_tokens=POOL)).run([Request(0, "a", 0.0, 900, 200)])


def test_a_quiet_tenants_arrivals_do_not_depend_on_a_noisy_one() -> None:
    sizes, seed = (1, 9), 3
    alone = poisson({"quiet": 1.0}, 30.0, sizes, sizes, seed)
    with_noise = poisson({"quiet": 1.0, "noisy": 9.0}, 30.0, sizes, sizes, seed)
    asks = [(r.arrived_at_s, r.prompt_tokens, r.output_tokens) for r in with_noise if r.tenant == "quiet"]
    assert asks == [(r.arrived_at_s, r.prompt_tokens, r.output_tokens) for r in alone] and asks

"""The closed forms of a loaded replica: by hand, and against an engine that is stepped through."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from cluster.planning.bursts import floor_replicas, mean_replicas
from cluster.planning.load import Bucket, Point, Replica, Targets, full_batch_rate, highest_rate, operate
from cluster.simulation.step_model import StepModel

STEP = StepModel(0.010, 20e-6, 100e-6, 0.0)
BUCKETS = [Bucket(1.0, 500, 101)]


def replica(**changes) -> Replica:
    return Replica(**{"step": STEP, "kv_tokens": 10**6, "slots": 50, "chunk_tokens": 1000, **changes})


def test_a_steady_state_by_hand():
    # A request costs 500 x 20 us + 100 x 100 us = 20 ms; at 10 a second rho is 0.2, a step 12.5 ms, and 12.5 decode.
    point = operate(replica(), BUCKETS, 10, Targets())
    assert isinstance(point, Point)
    assert point.utilisation == pytest.approx(0.2)
    assert point.itl_s == pytest.approx(0.0125)
    assert point.sequences == pytest.approx(12.5)
    assert point.kv_tokens == pytest.approx(12.5 * 550.5)


def test_a_full_batch_by_hand():
    # 50 slots: 100 / 50 = 2 steps a request, so 20 ms + 2 x 10 ms.
    assert full_batch_rate(replica(), BUCKETS) == pytest.approx(25)
    # 2000 tokens of cache hold 3.63 sequences.
    assert full_batch_rate(replica(kv_tokens=2000), BUCKETS) == pytest.approx(1 / (0.02 + 0.01 * 100 * 550.5 / 2000))
    # Answers of one token: a step takes 1000 tokens of prompts, two requests.
    assert full_batch_rate(replica(), [Bucket(1.0, 500, 1)]) == pytest.approx(1 / (0.01 + 0.005))


def test_why_a_replica_takes_nothing():
    slow = highest_rate(replica(), BUCKETS, Targets(itl_s=0.005))
    assert slow == "latency: 10.0 ms between tokens, 5 ms asked for"
    late = highest_rate(replica(), BUCKETS, Targets(ttft_s=0.015))
    assert isinstance(late, str) and "0% of first tokens within 0.015 s, 95% asked for" in late


def test_the_highest_rate_is_the_last_that_keeps_every_target():
    targets = Targets(ttft_s=0.2, itl_s=0.02)
    rate = highest_rate(replica(), BUCKETS, targets)
    assert isinstance(rate, float)
    at = operate(replica(), BUCKETS, rate, targets)
    assert isinstance(at, Point) and at.itl_s <= 0.02 and at.ttft_attained >= 0.95
    over = operate(replica(), BUCKETS, rate * 1.02, targets)
    assert isinstance(over, str) or over.itl_s > 0.02 or over.ttft_attained < 0.95


def test_slots_and_cache_limit_the_rate():
    loose = Targets(itl_s=1.0)
    assert isinstance(operate(replica(slots=10), BUCKETS, 10, loose), str)
    few, many = (highest_rate(replica(slots=n), BUCKETS, loose) for n in (10, 50))
    small = highest_rate(replica(kv_tokens=5000), BUCKETS, loose)
    assert isinstance(few, float) and isinstance(many, float) and isinstance(small, float)
    assert few < many and small < many


@dataclass
class Stepper:
    """A replica that is stepped through: chunks of the oldest prompts beside all running answers."""

    step: StepModel
    chunk: int
    now: float = 0.0
    prompts: deque = field(default_factory=deque)
    running: list = field(default_factory=list)
    ttft: list = field(default_factory=list)
    steps: list = field(default_factory=list)

    def run(self, arrivals: list[tuple[float, int, int]]) -> None:
        waiting = deque(arrivals)
        while waiting or self.prompts or self.running:
            if not self.prompts and not self.running:
                self.now = max(self.now, waiting[0][0])
            while waiting and waiting[0][0] <= self.now:
                at, prompt, output = waiting.popleft()
                self.prompts.append([at, prompt, output])
            self._step()

    def _step(self) -> None:
        left, done = self.chunk, []
        while self.prompts and left:
            first = self.prompts[0]
            part = min(left, first[1])
            first[1] -= part
            left -= part
            if not first[1]:
                done.append(self.prompts.popleft())
        s = self.step
        took = s.base_s + s.prefill_s_a_token * (self.chunk - left) + s.decode_s_a_request * len(self.running)
        self.now += took
        self.steps += [took] * len(self.running)
        self.running = [n - 1 for n in self.running if n > 1]
        for at, _, output in done:
            self.ttft.append(self.now - at)
            if output > 1:
                self.running.append(output - 1)


@pytest.mark.parametrize("rate", [5, 15, 25])
def test_the_closed_form_agrees_with_an_engine_that_is_stepped_through(rate):
    draw = random.Random(rate)
    now, arrivals = 0.0, []
    for _ in range(3000):
        now += draw.expovariate(rate)
        arrivals.append((now, 500, 101))
    engine = Stepper(STEP, 1000)
    engine.run(arrivals)
    point = operate(replica(slots=1000), BUCKETS, rate, Targets())
    assert isinstance(point, Point)
    assert sum(engine.steps) / len(engine.steps) == pytest.approx(point.itl_s, rel=0.05)
    ordered = sorted(engine.ttft)
    # The form is on the safe side: prompts that share a step wait less than a queue of one at a time says.
    assert 0.9 * ordered[len(ordered) // 2] <= point.ttft_p50_s <= 2 * ordered[len(ordered) // 2]
    assert 0.7 * ordered[int(len(ordered) * 0.99)] <= point.ttft_p99_s <= 2 * ordered[int(len(ordered) * 0.99)]


def longest_wait(rate: float, each: float, warm: int, most: int, cold_s: float) -> float:
    """Of a fluid burst, request by request."""
    waits = []
    for number in range(int(rate * cold_s)):
        arrived, ahead = number / rate, float(number)
        done_warm = warm * each * cold_s
        start = ahead / (warm * each) if warm and ahead < done_warm else cold_s + (ahead - done_warm) / (most * each)
        waits.append(max(0.0, start - arrived))
    return max(waits)


def test_the_floor_of_a_burst_is_the_fewest_that_keep_the_wait():
    assert floor_replicas(100, 10, wait_s=30, cold_start_s=60) == 5
    assert longest_wait(100, 10, 5, 10, 60) <= 30.1
    assert longest_wait(100, 10, 4, 10, 60) > 30.1
    assert floor_replicas(100, 10, wait_s=60, cold_start_s=60) == 0
    assert mean_replicas(5, 10, 20, 100) == 6

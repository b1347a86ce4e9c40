"""Two implementations of VTC that share no code take the same decisions; weights, lift and limits do what they say."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

import pytest

from benchmarks.fairness_sides.engine_model import EngineModel, Policy, Running
from benchmarks.fairness_sides.metrics import shares
from benchmarks.fairness_sides.ours import CLASS, Ours
from benchmarks.fairness_sides.policies import (
    Fifo,
    LastOutputs,
    Oracle,
    RateLimit,
    RoundRobin,
    TokenCounters,
    rivals,
)
from benchmarks.fairness_sides.workload import Request, steady
from cluster.scheduling import (
    ClassPolicy,
    OutputPredictor,
    Replica,
    RequestQueue,
    TenantPolicy,
    Ticket,
    TokenUsage,
)

SLOTS = 4
ODD_WEIGHTS = {"a": 1.0, "b": 1.7320508, "c": 0.5772157, "d": 2.2360679}
"""No two sums of tokens are equal after the division, so that equal counters come from lifts only."""


class NoGuess(OutputPredictor):
    """With it the queue is plain VTC: input at admission, output as it is produced."""

    def predict(self, tenant: str, max_output_tokens: int) -> int:
        return 0


class PlainQueue:
    """`RequestQueue` as a policy of the slots engine below."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        policy = ClassPolicy(max_queued=10**6, max_wait_s=10**9)
        self._queue = RequestQueue({CLASS: policy}, predictor=NoGuess())
        self._queue.put_replica(Replica("r", "d", (CLASS,), SLOTS), 0.0)
        for tenant, weight in weights.items():
            self._queue.set_tenant(tenant, TenantPolicy(weight), 0.0)
        self._leases: dict[int, str] = {}

    def arrive(self, request: Request, now_s: float) -> None:
        ticket = Ticket(str(request.number), "gw", request.tenant, CLASS, request.prompt_tokens, 10**6, now_s)
        assert self._queue.submit(ticket, now_s) is None

    def fill(self, free: int, now_s: float) -> list[int]:
        leases = self._queue.grant(now_s)
        self._leases |= {int(lease.ticket.ticket_id): lease.lease_id for lease in leases}
        assert len(leases) <= free
        return [int(lease.ticket.ticket_id) for lease in leases]

    def produced(self, running: Sequence[Running], now_s: float) -> None:
        for one in running:
            self._queue.progress(self._leases[one.request.number], one.produced, now_s)

    def finish(self, request: Request, now_s: float) -> None:
        usage = TokenUsage(request.prompt_tokens, 0, request.output_tokens)
        assert self._queue.release(self._leases[request.number], usage, now_s)


class Checked(TokenCounters):
    """`TokenCounters` that takes another's choice, and says whether it could have been its own."""

    def take(self, request: Request) -> tuple[bool, bool]:
        """(the choice was among those with the smallest counter and first of its tenant, it was the only such one)"""
        waiting = {tenant: self.counters()[tenant] for tenant in self._queues}
        least = [tenant for tenant, counter in waiting.items() if counter <= min(waiting.values()) + 1e-6]
        right = request.tenant in least and self._queues[request.tenant][0] is request
        self.admit(request, 0.0)
        return right, len(waiting) > 1 and len(least) == 1


def decisions(requests: list[Request], checked: Checked) -> list[tuple[bool, bool]]:
    """What `checked` says of each admission of the queue, in an engine of `SLOTS` slots and one token a step."""
    queue = PlainQueue(ODD_WEIGHTS)
    found: list[tuple[bool, bool]] = []
    running: list[Running] = []
    coming = deque(sorted(requests, key=lambda r: (r.arrived_at_s, r.number)))
    now_s = 0.0
    while coming or running:
        while coming and coming[0].arrived_at_s <= now_s:
            request = coming.popleft()
            queue.arrive(request, now_s)
            checked.arrive(request, now_s)
        for number in queue.fill(SLOTS - len(running), now_s):
            found.append(checked.take(requests[number]))
            running.append(Running(requests[number], now_s))
        for one in running:
            one.produced += 1
        queue.produced(running, now_s)
        checked.produced(running, now_s)
        for one in [r for r in running if not r.left]:
            running.remove(one)
            queue.finish(one.request, now_s)
            checked.finish(one.request, now_s)
        now_s += 1.0
    return found


def bursty(seed: int) -> list[Request]:
    """Tenants that come and go, so that lifts matter; often more wait than fit."""
    rng = random.Random(seed)
    requests = []
    for number in range(300):
        tenant = rng.choice("abcd" if (number // 40) % 2 else "aab")
        requests.append(Request(number, tenant, float(number * 2), rng.randint(1, 60), rng.randint(1, 15)))
    return requests


@pytest.mark.parametrize("seed", range(4))
def test_two_implementations_of_vtc_decide_alike(seed: int) -> None:
    """Of tenants with equal counters, as a lift makes them, either may take either."""
    requests = bursty(seed)
    found = decisions(requests, Checked(ODD_WEIGHTS))
    assert len(found) == len(requests) and all(right for right, _ in found)
    assert sum(single for _, single in found) > 60, "a load with nothing to decide proves nothing"
    unlike = {
        "no lift": Checked(ODD_WEIGHTS, lift=False),
        "no weights": Checked(),
        "oracle": Checked(predictor=Oracle()),
    }
    for name, other in unlike.items():
        assert not all(right for right, _ in decisions(requests, other)), f"this load cannot tell: {name}"


@pytest.mark.parametrize("make", [Ours, TokenCounters], ids=["ours", "vtc"])
def test_shares_follow_weights(make: Callable[[Mapping[str, float]], Policy]) -> None:
    weights = {"w1": 1.0, "w2": 2.0, "w3": 3.0, "w4": 4.0}
    requests = steady(weights, 120.0, 128, 128)  # everybody asks for half as much again as its share
    served = EngineModel(make(weights)).run(requests).served
    got = shares(served, 30.0, 120.0)
    assert got == {tenant: pytest.approx(weight / 10, rel=0.03) for tenant, weight in weights.items()}


def test_round_robin_takes_turns() -> None:
    policy = RoundRobin()
    for number, tenant in enumerate("aaabbc"):
        policy.arrive(Request(number, tenant, 0.0, 1, 1), 0.0)
    turns = []
    while (request := policy.head(0.0)) is not None:
        policy.admit(request, 0.0)
        turns.append(request.tenant)
    assert "".join(turns) == "abcaba"


def test_a_rate_limit_counts_what_it_let_in_within_a_minute() -> None:
    policy = RateLimit(2)
    times = [0.0, 1.0, 2.0, 59.9, 60.0, 60.5, 61.0]
    let_in = [policy.arrive(Request(n, "a", at_s, 1, 1), at_s) for n, at_s in enumerate(times)]
    assert let_in == [True, True, False, False, True, False, True]
    assert policy.arrive(Request(9, "b", 61.0, 1, 1), 61.0), "one tenant's limit is not another's"


def test_least_counter_first_remembers_idling_and_vtc_does_not() -> None:
    """After a has been served alone, b comes back: without the lift it is owed everything, with it nothing."""
    firsts = {}
    for lift in (True, False):
        policy = TokenCounters(lift=lift)
        for number in range(12):
            policy.arrive(Request(number, "a", 0.0, 100, 1), 0.0)
        for _ in range(4):
            request = policy.head(0.0)
            assert request is not None
            policy.admit(request, 0.0)
        for number in range(12, 18):
            policy.arrive(Request(number, "b", 1.0, 100, 1), 1.0)
        turns = []
        for _ in range(6):
            request = policy.head(1.0)
            assert request is not None
            policy.admit(request, 1.0)
            turns.append(request.tenant)
        firsts[lift] = Counter(turns)
    assert firsts[True] == {"a": 3, "b": 3}
    assert firsts[False] == {"a": 1, "b": 5}


@pytest.mark.parametrize("predictor", [None, LastOutputs(), Oracle()])
def test_what_is_charged_in_the_end_is_what_was_used(predictor: LastOutputs | Oracle | None) -> None:
    policy = TokenCounters(predictor=predictor, lift=False)  # a lift is no service
    requests = steady({"a": 1.0, "b": 2.0}, 20.0, 30, 40)
    EngineModel(policy).run(requests)
    assert policy.counters() == pytest.approx({"a": 20 * (30 + 2 * 40), "b": 40 * (30 + 2 * 40)})


def test_every_rival_serves_a_light_load_alike() -> None:
    """Nobody waits, so there is nothing to decide, and no rate is above its limit."""
    requests = steady({"a": 0.05, "b": 0.05}, 120.0, 50, 20)
    ends = {name: EngineModel(make()).run(requests).end_s for name, make in rivals().items()}
    ends["ours"] = EngineModel(Ours()).run(requests).end_s
    assert len(set(ends.values())) == 1, ends


def test_fifo_is_the_order_of_arrival() -> None:
    requests = steady({"a": 5.0, "b": 1.0}, 10.0, 200, 20)
    served = EngineModel(Fifo()).run(requests).served
    order = [r.request.number for r in sorted(served, key=lambda r: (r.admitted_at_s, r.request.number))]
    assert order == sorted(order)

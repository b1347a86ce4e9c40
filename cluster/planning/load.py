"""Role: what a replica does at a given request rate. Owns: the closed forms from a step model to TTFT, ITL, capacity.

With continuous batching a step takes A + B p + C n + D k. In a steady state at rate r, with P uncached prompt tokens, s
= output - 1 decode steps and contexts around P' + output / 2: n = r s t sequences decode, p = r P t tokens of prompts
join a step, k = r s t (P' + output / 2) tokens are in the cache. So the step time t solves

    t = A / (1 - rho)          rho = r x E[ B P + C s + D s (P' + output / 2) ]

(the form of llm-d's workload-variant autoscaler). Prompts wait for each other: chunks of M tokens, each beside the
running answers, so one of P tokens keeps the prefill busy for S = P (B + (A + C n + D k) / M). That is an M/G/1 queue:
W = r E[S^2] / (2 (1 - r E[S])), whose tail is taken as exponential, P(wait > x) = u exp(-u x / W), u = r E[S]. Then

    TTFT = fixed time + one step that runs already + wait + PP x B P + ceil(P / M) (A + C n + D k)

A replica is full when its sequences, plus two standard deviations of a Poisson number, exceed its slots or its cache.
Without a target for latency the batch is kept full, and a request takes  E[B P + C s + D s (..)] + A max(s / n, P / M).
Must not know: prices, models, where the constants come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cluster.simulation.step_model import StepModel

_ROUNDS: Final = 50
_NEARLY_IDLE: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Bucket:
    """Requests of about the same lengths."""

    share: float
    prompt_tokens: float
    output_tokens: float
    cached_tokens: float = 0.0

    @property
    def uncached_tokens(self) -> float:
        return self.prompt_tokens - self.cached_tokens

    @property
    def steps(self) -> float:
        """The first token comes with the end of the prompt."""
        return max(0.0, self.output_tokens - 1)

    @property
    def context_tokens(self) -> float:
        """On average while it decodes."""
        return self.prompt_tokens + self.output_tokens / 2


@dataclass(frozen=True, slots=True)
class Replica:
    """What one can do."""

    step: StepModel
    kv_tokens: int
    slots: int
    chunk_tokens: int
    stages: int = 1
    request_s: float = 0.0
    """Fixed time of a request outside of the steps."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What a class asks for; None = nothing."""

    ttft_s: float | None = None
    itl_s: float | None = None
    attainment: float = 0.95
    """Share of requests whose first token must come in time."""


@dataclass(frozen=True, slots=True)
class Point:
    """A replica at one request rate."""

    requests_per_s: float
    utilisation: float
    itl_s: float
    sequences: float
    kv_tokens: float
    ttft_p50_s: float
    ttft_p99_s: float
    ttft_attained: float
    """Share within the target; 1 without one."""


def mean(buckets: Sequence[Bucket], values: Sequence[float]) -> float:
    return sum(bucket.share * value for bucket, value in zip(buckets, values, strict=True))


def work_s(replica: Replica, buckets: Sequence[Bucket]) -> float:
    """Seconds of the engine that a request takes beside its share of the steps' fixed part."""
    step = replica.step
    each = [
        step.prefill_s_a_token * b.uncached_tokens
        + b.steps * (step.decode_s_a_request + step.decode_s_a_kv_token * b.context_tokens)
        for b in buckets
    ]
    return mean(buckets, each)


def full_batch_rate(replica: Replica, buckets: Sequence[Bucket]) -> float:
    """Requests a second with a batch that is always full."""
    context = max(1.0, _mean_context(buckets))
    sequences = max(1.0, min(replica.slots, replica.kv_tokens / context))
    steps = max(
        mean(buckets, [b.steps for b in buckets]) / sequences,
        mean(buckets, [b.uncached_tokens for b in buckets]) / replica.chunk_tokens,
    )
    return 1 / (work_s(replica, buckets) + replica.step.base_s * steps)


def _mean_context(buckets: Sequence[Bucket]) -> float:
    """Tokens that a running sequence holds: those that run longer weigh more."""
    steps = mean(buckets, [b.steps for b in buckets])
    if not steps:
        return mean(buckets, [b.prompt_tokens for b in buckets])
    return mean(buckets, [b.steps * b.context_tokens for b in buckets]) / steps


class _PromptQueue:
    """Waiting for the prefill of one replica, and the own prefill."""

    def __init__(
        self,
        replica: Replica,
        buckets: Sequence[Bucket],
        rate: float,
        itl_s: float,
        sequences: float,
        kv_tokens: float,
    ) -> None:
        step = replica.step
        beside_s = step.base_s + step.decode_s_a_request * sequences + step.decode_s_a_kv_token * kv_tokens
        token_s = step.prefill_s_a_token + beside_s / replica.chunk_tokens
        service = [b.uncached_tokens * token_s for b in buckets]
        self._buckets = buckets
        self.utilisation = rate * mean(buckets, service)
        second = mean(buckets, [s * s for s in service])
        self._wait_s = rate * second / (2 * (1 - self.utilisation)) if self.utilisation < 1 else math.inf
        self._own_s = [
            replica.request_s
            + itl_s
            + replica.stages * step.prefill_s_a_token * b.uncached_tokens
            + math.ceil(b.uncached_tokens / replica.chunk_tokens) * beside_s
            for b in buckets
        ]

    def within(self, seconds: float) -> float:
        """Share of requests with a first token by then."""
        return mean(self._buckets, [self._waits_at_most(seconds - own) for own in self._own_s])

    def quantile(self, share: float) -> float:
        low, high = 0.0, max(self._own_s) + 1e-3
        while self.within(high) < share:
            high *= 2
        for _ in range(_ROUNDS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.within(middle) < share else (low, middle)
        return high

    def _waits_at_most(self, seconds: float) -> float:
        if seconds < 0:
            return 0.0
        if self._wait_s <= 0:
            return 1.0
        return 1 - self.utilisation * math.exp(-self.utilisation * seconds / self._wait_s)


@dataclass(frozen=True, slots=True)
class _Steady:
    """What holds at one rate; its point is worked out only where it is wanted."""

    rate: float
    utilisation: float
    itl_s: float
    sequences: float
    kv_tokens: float
    queue: _PromptQueue

    def missed(self, targets: Targets) -> str | None:
        """Which target is not kept."""
        if targets.itl_s is not None and self.itl_s > targets.itl_s:
            return f"latency: {self.itl_s * 1e3:.1f} ms between tokens, {targets.itl_s * 1e3:g} ms asked for"
        if targets.ttft_s is None:
            return None
        attained = self.queue.within(targets.ttft_s)
        if attained < targets.attainment:
            return (
                f"latency: {attained:.0%} of first tokens within {targets.ttft_s:g} s, "
                f"{targets.attainment:.0%} asked for"
            )
        return None


def operate(replica: Replica, buckets: Sequence[Bucket], requests_per_s: float, targets: Targets) -> Point | str:
    """The steady state at that rate, or why there is none."""
    state = _steady(replica, buckets, requests_per_s)
    if isinstance(state, str):
        return state
    return Point(
        requests_per_s,
        state.utilisation,
        state.itl_s,
        state.sequences,
        state.kv_tokens,
        state.queue.quantile(0.5),
        state.queue.quantile(0.99),
        1.0 if targets.ttft_s is None else state.queue.within(targets.ttft_s),
    )


def highest_rate(replica: Replica, buckets: Sequence[Bucket], targets: Targets) -> float | str:
    """Requests a second that one replica takes within the targets, or why it takes none at all."""
    if targets.ttft_s is None and targets.itl_s is None:
        return full_batch_rate(replica, buckets)
    idle = _steady(replica, buckets, _NEARLY_IDLE)
    problem = idle if isinstance(idle, str) else idle.missed(targets)
    if problem:
        return problem
    low, high = _NEARLY_IDLE, 1 / max(work_s(replica, buckets), _NEARLY_IDLE)
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        state = _steady(replica, buckets, middle)
        fits = not isinstance(state, str) and state.missed(targets) is None
        low, high = (middle, high) if fits else (low, middle)
    return low


def _steady(replica: Replica, buckets: Sequence[Bucket], requests_per_s: float) -> _Steady | str:
    rho = requests_per_s * work_s(replica, buckets)
    if rho >= 1:
        return "throughput: more work than one replica can do"
    itl_s = replica.step.base_s / (1 - rho)
    sequences = requests_per_s * itl_s * mean(buckets, [b.steps for b in buckets])
    kv_tokens = sequences * _mean_context(buckets)
    reserve = 1 + 2 / math.sqrt(sequences) if sequences > _NEARLY_IDLE else 1.0
    if sequences * reserve > replica.slots:
        return f"throughput: {sequences * reserve:.0f} requests at once and {replica.slots} slots"
    if kv_tokens * reserve > replica.kv_tokens:
        return f"memory: {kv_tokens * reserve:.0f} tokens in the KV cache, which holds {replica.kv_tokens}"
    queue = _PromptQueue(replica, buckets, requests_per_s, itl_s, sequences, kv_tokens)
    if queue.utilisation >= 1:
        return "throughput: prompts arrive faster than chunks are read"
    return _Steady(requests_per_s, rho, itl_s, sequences, kv_tokens, queue)

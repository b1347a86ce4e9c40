"""A deterministic engine with continuous batching: Llama-2-7B on an A10G, as the VTC paper's measurements describe it.

As the engine of that paper does, it prefers to decode: it looks for work after 10 decode steps, then at every step
until something was admitted; requests that are admitted together are prefilled together while the others pause, and
prefill gives each its first token. A request is admitted when everything that runs could finish within the KV pool:
with requests sorted by what they have left to produce, longest first,
`need = max over k of (left_k * k + sum of held_j for j <= k)` must stay below the pool. When the policy's head does not
fit, nothing else is tried.

Owns: the clock, the batch, the KV pool. Must not know: how a policy chooses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.fairness_sides.workload import Request


@dataclass(frozen=True, slots=True)
class Engine:
    """What an engine takes for its work, and how much it holds. The defaults are fitted to the paper's profile."""

    decode_s: float = 16.3e-3
    decode_s_a_request: float = 0.245e-3
    decode_s_a_kv_token: float = 2.02e-6
    prefill_s: float = 0.0
    prefill_s_a_token: float = 0.215e-3
    pool_tokens: int = 10_000
    steps_between_admissions: int = 10


@dataclass(slots=True)
class Running:
    """A request in the batch."""

    request: Request
    admitted_at_s: float
    first_token_at_s: float = 0.0
    finished_at_s: float = 0.0
    produced: int = 0

    @property
    def held(self) -> int:
        """Tokens in the KV cache."""
        return self.request.prompt_tokens + self.produced

    @property
    def left(self) -> int:
        return self.request.output_tokens - self.produced


class Policy(Protocol):
    """Decides who goes next. All times are the engine's clock."""

    def arrive(self, request: Request, now_s: float) -> bool:
        """A request comes; False refuses it."""

    def head(self, now_s: float) -> Request | None:
        """The request that should go next."""

    def admit(self, request: Request, now_s: float) -> None:
        """The head begins to run."""

    def produced(self, running: Sequence[Running], now_s: float) -> None:
        """Each of these has produced one token more."""

    def finish(self, request: Request, now_s: float) -> None:
        """It has produced its last token."""


@dataclass(slots=True)
class Course:
    """What became of a load."""

    served: list[Running] = field(default_factory=list)
    refused: list[Request] = field(default_factory=list)
    end_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Input and output tokens of what was served, over the time until the last one ended."""
        tokens = sum(r.request.prompt_tokens + r.request.output_tokens for r in self.served)
        return tokens / self.end_s


def needed_tokens(batch: Iterable[tuple[int, int]]) -> int:
    """The most KV tokens that requests, given as (left, held), hold at once before all have finished."""
    need = total_held = 0
    for place, (left, held) in enumerate(sorted(batch, reverse=True), 1):
        total_held += held
        if left * place + total_held > need:
            need = left * place + total_held
    return need


class EngineModel:
    """Runs one load under one policy."""

    def __init__(self, policy: Policy, engine: Engine | None = None) -> None:
        self._policy = policy
        self._engine = engine or Engine()
        self._now_s = 0.0
        self._batch: list[Running] = []
        self._kv_tokens = 0
        self._course = Course()

    def run(self, requests: Iterable[Request]) -> Course:
        """Until everything was served or refused."""
        coming = deque(sorted(requests, key=lambda r: r.arrived_at_s))
        steps = 0
        while True:
            self._let_in(coming)
            admitted = self._admit() if not self._batch or steps >= self._engine.steps_between_admissions else []
            if admitted:
                self._prefill(admitted)
                steps = 0
            elif self._batch:
                self._decode()
                steps += 1
            elif coming:
                self._now_s = coming[0].arrived_at_s
            else:
                break
        self._course.end_s = self._now_s
        return self._course

    def _let_in(self, coming: deque[Request]) -> None:
        while coming and coming[0].arrived_at_s <= self._now_s:
            request = coming.popleft()
            if not self._policy.arrive(request, self._now_s):
                self._course.refused.append(request)

    def _admit(self) -> list[Running]:
        admitted: list[Running] = []
        while (request := self._policy.head(self._now_s)) is not None:
            candidate = Running(request, self._now_s)
            batch = [*self._batch, *admitted, candidate]
            if needed_tokens((r.left, r.held) for r in batch) >= self._engine.pool_tokens:
                if len(batch) == 1:
                    raise ValueError(f"{request} does not fit into an empty pool of {self._engine.pool_tokens} tokens")
                break
            self._policy.admit(request, self._now_s)
            admitted.append(candidate)
        return admitted

    def _prefill(self, admitted: list[Running]) -> None:
        tokens = sum(r.request.prompt_tokens for r in admitted)
        self._now_s += self._engine.prefill_s + self._engine.prefill_s_a_token * tokens
        for running in admitted:
            running.first_token_at_s = self._now_s
        self._batch += admitted
        self._kv_tokens += sum(r.held for r in admitted)
        self._one_token_more(admitted)

    def _decode(self) -> None:
        engine = self._engine
        self._now_s += engine.decode_s + engine.decode_s_a_request * len(self._batch)
        self._now_s += engine.decode_s_a_kv_token * self._kv_tokens
        self._one_token_more(self._batch)

    def _one_token_more(self, running: Sequence[Running]) -> None:
        done = []
        for one in running:
            one.produced += 1
            if one.produced == one.request.output_tokens:
                done.append(one)
        self._kv_tokens += len(running)
        self._policy.produced(running, self._now_s)
        if done:
            self._batch = [r for r in self._batch if r.left]
        for one in done:
            one.finished_at_s = self._now_s
            self._kv_tokens -= one.held
            self._policy.finish(one.request, self._now_s)
        self._course.served += done

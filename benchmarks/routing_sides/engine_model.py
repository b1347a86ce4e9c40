"""A deterministic engine with chunked prefill, continuous batching and a prefix cache.

A step takes `step_s + decode_s_a_request * b` with b requests decoding, and each of them gets a token. While a prompt
is prefilled every step carries a chunk of it and takes `chunk_tokens / prefill_tokens_per_s` longer. Between two events
the batch is the same, so the model computes with rates (tokens of a fluid) and jumps from event to event. Prompts are
prefilled one after the other, in the order in which they came; each costs `prompt_s` beside its tokens. A prompt's
leading blocks that are cached when its prefill begins are not computed again; its own can be used by others when its
prefill ends, its answer's when it ends. A request is begun when a slot is free and its prompt and answer fit beside
what runs.

Simplified: no preemption (an answer's room is reserved), attention costs the same at every length, one prompt at a time
in a chunk.

Owns: one replica's clock, batch and cache. Must not know: routers, other replicas.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass

from benchmarks.routing_sides.prefix_cache import PrefixCache
from benchmarks.routing_sides.workload import Request


@dataclass(frozen=True, slots=True)
class Engine:
    """What an engine takes for its work, and how much it holds: about a model of 8 billion parameters on one GPU."""

    prefill_tokens_per_s: float = 10_000.0
    chunk_tokens: int = 2048
    prompt_s: float = 0.01
    step_s: float = 0.01
    decode_s_a_request: float = 0.15e-3
    slots: int = 64
    cache_tokens: int = 524_288


@dataclass(slots=True)
class Served:
    """What became of a request."""

    request: Request
    replica: int
    arrived_at_s: float
    given_at_s: float
    """To the replica."""
    cached_tokens: int = 0
    first_token_at_s: float = 0.0
    finished_at_s: float = 0.0
    unnamed: int = 0

    @property
    def ttft_s(self) -> float:
        return self.first_token_at_s - self.arrived_at_s


class ReplicaModel:
    """One engine. `next_at_s` is when it has news; `step` at that time tells them."""

    def __init__(self, engine: Engine, block_tokens: int) -> None:
        self.next_at_s = math.inf
        self.prefilled_tokens = 0
        self._engine = engine
        self._block_tokens = block_tokens
        self._cache = PrefixCache(engine.cache_tokens // block_tokens)
        self._waiting: deque[Served] = deque()
        self._prefilling: Served | None = None
        self._left = 0.0
        """Tokens of the prompt still to prefill, its fixed cost among them."""
        self._decoding: list[tuple[float, int, Served]] = []
        """By `_produced` at which they end."""
        self._produced = 0.0
        """Tokens that a request would have that had decoded from the beginning."""
        self._now_s = 0.0

    def give(self, served: Served, now_s: float) -> None:
        self._advance(now_s)
        self._waiting.append(served)
        self._begin()
        self._plan()

    def step(self) -> tuple[Served | None, list[Served]]:
        """At `next_at_s`: whose first token came, and who has ended."""
        at_s = self.next_at_s
        prefill_ends = self._prefilling is not None and self._prefill_ends_at_s() <= at_s
        self._advance(at_s)
        first = self._end_prefill() if prefill_ends else None
        ended = []
        while self._decoding and self._decoding[0][0] <= self._produced + 1e-6:
            ended.append(self._end(heapq.heappop(self._decoding)[2]))
        self._begin()
        self._plan()
        return first, ended

    # --- inside ---------------------------------------------------------------------------------------------------

    def _step_s(self) -> float:
        engine = self._engine
        step_s = engine.step_s + engine.decode_s_a_request * len(self._decoding)
        return step_s + (engine.chunk_tokens / engine.prefill_tokens_per_s if self._prefilling is not None else 0.0)

    def _prefill_ends_at_s(self) -> float:
        return self._now_s + self._left * self._step_s() / self._engine.chunk_tokens

    def _advance(self, now_s: float) -> None:
        steps = (now_s - self._now_s) / self._step_s()
        self._produced += steps
        if self._prefilling is not None:
            self._left -= steps * self._engine.chunk_tokens
        self._now_s = now_s

    def _plan(self) -> None:
        self.next_at_s = self._prefill_ends_at_s() if self._prefilling is not None else math.inf
        if self._decoding:
            ends_at_s = self._now_s + max(0.0, self._decoding[0][0] - self._produced) * self._step_s()
            self.next_at_s = min(self.next_at_s, ends_at_s)

    def _begin(self) -> None:
        if self._prefilling is not None or not self._waiting or len(self._decoding) >= self._engine.slots:
            return
        served = self._waiting[0]
        request = served.request
        needed = math.ceil((request.prompt_tokens + request.output_tokens) / self._block_tokens)
        if not self._cache.fits(needed):
            if not self._decoding:
                raise ValueError(f"request {request.number} needs {needed} blocks, more than the cache has")
            return
        self._waiting.popleft()
        matched = self._cache.begin(request.blocks, needed)
        # The last token is always computed: it gives the first one of the answer.
        served.cached_tokens = min(matched * self._block_tokens, request.prompt_tokens - 1)
        served.unnamed = needed - matched
        uncached = request.prompt_tokens - served.cached_tokens
        self.prefilled_tokens += uncached
        self._prefilling = served
        self._left = uncached + self._engine.prompt_s * self._engine.prefill_tokens_per_s

    def _end_prefill(self) -> Served:
        served = self._prefilling
        assert served is not None
        self._prefilling, self._left = None, 0.0
        served.first_token_at_s = self._now_s
        matched = math.ceil(served.cached_tokens / self._block_tokens)
        computed = served.request.blocks[matched:]
        served.unnamed -= len(computed)
        self._cache.computed(computed)
        ends = self._produced + served.request.output_tokens - 1
        heapq.heappush(self._decoding, (ends, served.request.number, served))
        return served

    def _end(self, served: Served) -> Served:
        request = served.request
        served.finished_at_s = self._now_s
        self._cache.computed(request.answer_blocks)
        served.unnamed -= len(request.answer_blocks)
        self._cache.end(request.blocks + request.answer_blocks, served.unnamed)
        return served

"""One replica: continuous batching with chunked prefill, a KV cache with preemption, a prefix cache, priorities.

It schedules as vLLM does: in each step every decoding request gets a token; what `max_num_batched_tokens` leaves goes
to the prompt that is half done, then to waiting ones in the order (priority, arrival), as `max_num_seqs` and the
memory for their whole prompts allow; the last one may get a part. Who decodes and finds no room for its next token
makes the last in that order give way: it waits at its old place, and its prompt and what it has produced are computed
again, but for blocks that are still cached. In a step that preempts nobody is admitted.

There is one event per change of the batch. In between, decode steps are equal but for the growth of the cache, so the
model jumps over as many as come before the first end of a request, and never past the step in which memory runs out; an
arrival that may be admitted cuts the jump at the next boundary. Whoever waits for room or a place waits until then, as
neither appears within a jump. The result is that of a simulation step by step (tests/unit/simulation/oracle.py).

Usage: `give` at any time up to `end_s`; when the clock is there, `step`. Simplified: the prompt's memory is taken when
it is admitted, and a request joins in the very next step, where vLLM's asynchronous scheduling is a step ahead.

Owns: one replica's batch, memory and clock. Must not know: other replicas, queues, tenants.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush

from cluster.simulation.engine import Engine
from cluster.simulation.prefix_cache import PrefixCache
from cluster.simulation.request import Request
from cluster.simulation.step_model import first_boundary, span_s

_NOBODY: tuple[Request, ...] = ()


class ReplicaModel:
    """`end_s` is when the running jump ends: infinity when there is nothing to do."""

    __slots__ = (
        "_base_s",
        "_block",
        "_cache",
        "_capacity",
        "_decoding",
        "_first_s",
        "_joining",
        "_k",
        "_kv",
        "_kv_s",
        "_max_seqs",
        "_orders",
        "_partial",
        "_partial_left",
        "_prefill",
        "_prefill_s",
        "_request_s",
        "_start_s",
        "_steps",
        "_waiting",
        "busy_s",
        "end_s",
        "engine",
        "preemptions",
        "prefilled_tokens",
    )

    def __init__(self, engine: Engine, cache: bool | None = None) -> None:
        """`cache` False leaves the prefix cache out where nothing could hit it, which is faster."""
        step = engine.step
        self.engine = engine
        self.end_s = math.inf
        self.busy_s = 0.0
        self.prefilled_tokens = 0
        self.preemptions = 0
        self._base_s, self._prefill_s = step.base_s, step.prefill_s_a_token
        self._request_s, self._kv_s = step.decode_s_a_request, step.decode_s_a_kv_token
        self._block = engine.block_tokens
        self._capacity = engine.blocks * engine.block_tokens
        self._max_seqs = engine.max_num_seqs
        use_cache = engine.prefix_caching if cache is None else cache
        self._cache = PrefixCache() if use_cache else None
        self._waiting: list[tuple[int, int, Request]] = []
        self._decoding: list[tuple[int, int, Request]] = []
        """By the count of steps at which they end."""
        self._joining: list[Request] = []
        """Those whose prefill the present step completes."""
        self._partial: Request | None = None
        self._partial_left = 0
        self._kv = 0
        """Tokens stored of those that decode."""
        self._steps = 0
        self._orders = 0
        self._start_s = 0.0
        self._first_s = 0.0
        """Of the running jump: its first step, prefill apart."""
        self._k = 0
        self._prefill = 0

    # --- from outside ---------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        return not (self._decoding or self._joining or self._waiting or self._partial)

    @property
    def steps(self) -> int:
        """Computed so far."""
        return self._steps

    def give(self, request: Request, now_s: float) -> None:
        """A request comes; `now_s` is not after `end_s`."""
        if request.prompt_tokens + request.output_tokens > self._capacity:
            raise ValueError(
                f"request {request.number} needs {request.prompt_tokens + request.output_tokens} tokens of KV cache, "
                f"the engine has {self._capacity}: raise kv_tokens or leave the request out"
            )
        order = request.order = self._orders
        self._orders = order + 1
        heappush(self._waiting, (request.priority, order, request))
        if self._start_s > now_s:
            raise ValueError(f"time runs backwards: {now_s} after {self._start_s}")
        if self.end_s == math.inf:
            self._start_s = self.end_s = now_s  # no jump: the plan is made when all that comes now is here
            self._k = 0
        elif self._k > 1 and self._waiting[0][2] is request and len(self._decoding) < self._max_seqs:
            self._cut(now_s)

    def step(self) -> Sequence[Request]:
        """At `end_s`: those that have ended."""
        now_s = self.end_s
        decoding = self._decoding
        steps = self._steps = self._steps + self._k
        self._kv += len(decoding) * self._k
        self.busy_s += now_s - self._start_s
        cache = self._cache
        if cache is not None and cache.idle_blocks:
            self._shrink(0)
        ended = self._join(now_s) if self._joining else _NOBODY
        if decoding and decoding[0][0] == steps:
            ended = list(ended)
            while decoding and decoding[0][0] == steps:
                request = heappop(decoding)[2]
                self._kv -= request.prompt_tokens + request.output_tokens - 1
                self._end(request, now_s)
                ended.append(request)
        self._plan(now_s)
        return ended

    def progress(self, now_s: float) -> Iterator[tuple[Request, int]]:
        """What decodes, and how many tokens of each were produced until now."""
        steps = self._steps + self._whole_steps(now_s)
        for done, _, request in self._decoding:
            yield request, request.output_tokens - (done - steps)

    def abandon(self, now_s: float) -> list[Request]:
        """The replica dies: what it had, each with what it had produced."""
        for request, produced in self.progress(now_s):
            request.produced = produced
        lost = [request for _, _, request in (*self._decoding, *self._waiting)] + self._joining
        if self._partial is not None:
            lost.append(self._partial)
        self.busy_s += max(0.0, min(now_s, self.end_s) - self._start_s)
        self.end_s = math.inf
        self._decoding, self._waiting, self._joining, self._partial = [], [], [], None
        return sorted(lost, key=lambda request: request.order)

    # --- time -----------------------------------------------------------------------------------------------------

    def _cut(self, now_s: float) -> None:
        growth_s = self._kv_s * len(self._decoding)
        steps = first_boundary(now_s - self._start_s, self._first_s, growth_s)
        if steps < self._k:
            self._k = steps
            self.end_s = self._start_s + span_s(steps, self._first_s, growth_s)

    def _whole_steps(self, now_s: float) -> int:
        """Of the running jump until now."""
        if self._k < 2 or not self._decoding:
            return 0
        growth_s, past_s = self._kv_s * len(self._decoding), now_s - self._start_s
        steps = first_boundary(past_s, self._first_s, growth_s)
        return min(self._k, steps if span_s(steps, self._first_s, growth_s) <= past_s else steps - 1)

    def _plan(self, now_s: float) -> None:
        """The next jump. This is the usual case: nobody waits, and there is room until somebody ends."""
        decoding = self._decoding
        n, kv = len(decoding), self._kv
        if n and not self._waiting and self._partial is None:
            k = decoding[0][0] - self._steps
            if kv + n * (k + self._block) <= self._capacity:
                first_s = self._base_s + self._request_s * n + self._kv_s * kv
                self._start_s, self._first_s, self._k, self._prefill = now_s, first_s, k, 0
                self.end_s = now_s + k * first_s + self._kv_s * n * (k * (k - 1) / 2)
                return
        self._plan_with_care(now_s)

    def _plan_with_care(self, now_s: float) -> None:
        """In all other cases."""
        decoding = self._decoding
        preempted = bool(decoding) and not self._roomy(self._block, 1) and self._make_room()
        prefill = 0
        if self._waiting or self._partial is not None:
            prefill = self._schedule_prefill(not preempted)
        n = len(decoding)
        self._first_s = self._base_s + self._request_s * n + self._kv_s * self._kv
        self._start_s, self._prefill = now_s, prefill
        if prefill:
            self.prefilled_tokens += prefill
            self._k = 1
            self.end_s = now_s + self._first_s + self._prefill_s * prefill
        elif n:
            k = 1 if preempted else decoding[0][0] - self._steps
            if k > 1 and not self._roomy(0, k):
                k = self._fitting(k)
            self._k = k
            self.end_s = now_s + span_s(k, self._first_s, self._kv_s * n)
        else:
            self._k = 0
            self.end_s = math.inf

    # --- prefill --------------------------------------------------------------------------------------------------

    def _schedule_prefill(self, admit: bool) -> int:
        """Prompt tokens of the next step; fills `_joining` and `_partial`."""
        budget = before = self.engine.max_num_batched_tokens - len(self._decoding)
        if self._partial is not None and budget > 0:
            chunk = min(budget, self._partial_left)
            budget -= chunk
            self._partial_left -= chunk
            if not self._partial_left:
                self._joining.append(self._partial)
                self._partial = None
        while admit and budget > 0 and self._waiting and self._partial is None:
            if len(self._decoding) + len(self._joining) >= self._max_seqs:
                break
            request = self._waiting[0][2]
            length = request.prompt_tokens + request.produced
            cached = self._admit(request, length)
            if cached is None:
                break
            heappop(self._waiting)
            chunk = min(budget, length - cached)
            budget -= chunk
            if chunk == length - cached:
                self._joining.append(request)
            else:
                self._partial, self._partial_left = request, length - cached - chunk
        return max(0, before - budget)

    def _admit(self, request: Request, length: int) -> int | None:
        """Cached tokens of a request for which there is room now; None where there is none."""
        size, cache = self._block, self._cache
        blocks = -(-length // size)
        cached = 0
        if cache is not None:
            if cache.idle_blocks:
                self._shrink(1)
            hit = cache.matched(request.blocks)
            if hit == len(request.blocks):
                hit += cache.own(request.number)
            cached = min(hit, (length - 1) // size) * size  # the last token is always computed
            blocks -= cache.running(request.blocks)
        if not self._roomy(length + size, 1) and self._used(1) + blocks > self.engine.blocks:
            return None
        if cache is not None:
            cache.pin(request.blocks, request.number)
        if request.first_token_s < 0:
            request.cached_tokens = cached
        return cached

    def _join(self, now_s: float) -> list[Request]:
        """The step that completes their prefill ends; returns those that wanted one token only."""
        ended = []
        joining, self._joining = self._joining, []
        for request in joining:
            stored = request.prompt_tokens + request.produced
            request.produced += 1
            if request.first_token_s < 0:
                request.first_token_s = now_s
            left = request.output_tokens - request.produced
            if left > 0:
                heappush(self._decoding, (self._steps + left, request.order, request))
                self._kv += stored
            else:
                self._end(request, now_s)
                ended.append(request)
        return ended

    def _end(self, request: Request, now_s: float) -> None:
        request.finished_s = now_s
        request.produced = request.output_tokens
        if self._cache is not None:
            own = (request.prompt_tokens + request.output_tokens - 1) // self._block - len(request.blocks)
            self._cache.unpin(request.blocks, request.number, own, len(request.blocks))

    # --- memory ---------------------------------------------------------------------------------------------------

    def _roomy(self, tokens: int, ahead: int) -> bool:
        """Whether so many tokens more surely fit `ahead` steps on: without counting blocks."""
        tokens += self._kv + len(self._decoding) * (self._block + ahead)
        if self._joining or self._partial is not None:
            filling = self._joining if self._partial is None else [*self._joining, self._partial]
            tokens += sum(r.prompt_tokens + r.produced + self._block for r in filling)
        return tokens <= self._capacity

    def _used(self, ahead: int) -> int:
        """Blocks that running requests hold when those that decode are `ahead` steps further."""
        size, at = self._block, self._steps + ahead - 1
        used = sum(-(-(r.prompt_tokens + r.output_tokens + at - done) // size) for done, _, r in self._decoding)
        filling = self._joining if self._partial is None else [*self._joining, self._partial]
        used += sum(-(-(r.prompt_tokens + r.produced) // size) for r in filling)
        if self._cache is not None and self._cache.pinned_blocks:
            shared = sum(len(r.blocks) for _, _, r in self._decoding) + sum(len(r.blocks) for r in filling)
            used += self._cache.pinned_blocks - shared
        return used

    def _shrink(self, ahead: int) -> None:
        cache = self._cache
        assert cache is not None
        if not self._roomy(cache.idle_blocks * self._block, ahead):
            cache.shrink(self.engine.blocks - self._used(ahead))

    def _fitting(self, most: int) -> int:
        """The most decode steps, at least one, for which there is room."""
        low, high = 1, most
        while low < high:
            middle = (low + high + 1) // 2
            if self._used(middle) <= self.engine.blocks:
                low = middle
            else:
                high = middle - 1
        return low

    def _make_room(self) -> bool:
        """Preempt until everybody that decodes has room for one token; whether anybody was."""
        preempted = False
        while self._decoding and self._used(1) > self.engine.blocks:
            running = [request for _, _, request in self._decoding]
            if self._partial is not None:
                running.append(self._partial)
            self._preempt(max(running, key=lambda request: (request.priority, request.order)))
            preempted = True
        return preempted

    def _preempt(self, request: Request) -> None:
        if self._cache is not None:
            self._shrink(0)
        stored = request.prompt_tokens + request.produced
        if request is self._partial:
            stored -= self._partial_left
            self._partial = None
        else:
            entry = next(entry for entry in self._decoding if entry[2] is request)
            self._decoding.remove(entry)
            heapify(self._decoding)
            left = entry[0] - self._steps
            request.produced = request.output_tokens - left
            stored = request.prompt_tokens + request.produced - 1
            self._kv -= stored
        if self._cache is not None:
            whole = stored // self._block
            known = min(whole, len(request.blocks))
            self._cache.unpin(request.blocks, request.number, whole - len(request.blocks), known)
        request.preemptions += 1
        self.preemptions += 1
        heappush(self._waiting, (request.priority, request.order, request))

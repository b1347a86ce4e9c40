"""The same engine step by step, as plainly as it can be written: what the model with its jumps must agree with.

Blocks are single objects here, and everything is counted anew in every step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.simulation import Engine, Request

Block = object


@dataclass
class Sequence:
    request: Request
    order: int
    produced: int = 0
    computed: int = 0
    target: int = 0
    """Tokens to compute before it decodes."""
    holds: list[Block] = field(default_factory=list)
    """Hashes of its prompt's blocks, known to others from its admission on."""
    admitted: int = 0

    @property
    def rank(self) -> tuple[int, int]:
        return self.request.priority, self.order

    @property
    def decodes(self) -> bool:
        return self.computed >= self.target


class Oracle:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.now_s = 0.0
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.idle: list[Block] = []
        """Oldest first."""
        self.ends: dict[int, tuple[float, float, int, int]] = {}
        """By number: first token, end, cached tokens, preemptions."""
        self._first: dict[int, float] = {}
        self._cached: dict[int, int] = {}
        self._preempted: dict[int, int] = {}

    def run(self, requests: list[Request]) -> None:
        coming = [Sequence(request, order) for order, request in enumerate(requests)]
        while coming or self.waiting or self.running:
            if not self.waiting and not self.running:
                self.now_s = max(self.now_s, coming[0].request.arrived_s)
            while coming and coming[0].request.arrived_s <= self.now_s:
                self.waiting.append(coming.pop(0))
            self._step()

    # --- one step -------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        decoding = [s for s in self.running if s.decodes]
        preempted = False
        while decoding and self._used(decoding) > self.engine.blocks:
            self._preempt(max(self.running, key=lambda s: s.rank))
            decoding = [s for s in self.running if s.decodes]
            preempted = True
        budget = self.engine.max_num_batched_tokens - len(decoding)
        kv_tokens = sum(s.computed for s in decoding)
        filled: list[tuple[Sequence, int]] = []
        for sequence in self.running:
            if not sequence.decodes and budget > 0:
                chunk = min(budget, sequence.target - sequence.computed)
                budget -= chunk
                filled.append((sequence, chunk))
        half_done = any(s.computed + c < s.target for s, c in filled) or any(
            not s.decodes and all(s is not f for f, _ in filled) for s in self.running
        )
        while not preempted and not half_done and budget > 0 and self.waiting:
            if len(self.running) >= self.engine.max_num_seqs:
                break
            head = min(self.waiting, key=lambda s: s.rank)
            self._evict(decoding)
            if not self._admit(head, decoding):
                break
            self.waiting.remove(head)
            chunk = min(budget, head.target - head.computed)
            budget -= chunk
            filled.append((head, chunk))
            half_done = head.computed + chunk < head.target
        prefill = sum(chunk for _, chunk in filled)
        self.now_s += self.engine.step.step_s(prefill, len(decoding), kv_tokens)
        for sequence in decoding:
            sequence.computed += 1
            sequence.target = sequence.computed
            sequence.produced += 1
        for sequence, chunk in filled:
            sequence.computed += chunk
            if sequence.decodes:
                sequence.produced += 1
                self._first.setdefault(sequence.request.number, self.now_s)
        self._evict([])
        # Those whose prefill is complete end first, then those that decode, in the order of arrival.
        fresh = [s for s, _ in filled]
        for sequence in [*fresh, *sorted(decoding, key=lambda s: s.order)]:
            if sequence.decodes and sequence.produced == sequence.request.output_tokens:
                self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        number = sequence.request.number
        self._release(sequence)
        self.ends[number] = (
            self._first[number],
            self.now_s,
            self._cached[number],
            self._preempted.get(number, 0),
        )

    # --- memory ---------------------------------------------------------------------------------------------------

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.engine.block_tokens)

    def _used(self, one_more: list[Sequence]) -> int:
        hashed = {block for s in self.running for block in s.holds}
        own = 0
        for sequence in self.running:
            tokens = sequence.computed + (sequence in one_more)
            if not sequence.decodes:
                tokens = sequence.target
            own += self._blocks(tokens) - len(sequence.holds)
        return own + len(hashed)

    def _evict(self, one_more: list[Sequence]) -> None:
        room = self.engine.blocks - self._used(one_more)
        while len(self.idle) > room:
            self.idle.pop(0)

    def _admit(self, sequence: Sequence, decoding: list[Sequence]) -> bool:
        request, size = sequence.request, self.engine.block_tokens
        length = request.prompt_tokens + sequence.produced
        pinned = {block for s in self.running for block in s.holds}
        hit = 0
        if self.engine.prefix_caching:
            for block in request.blocks:
                if block not in pinned and block not in self.idle:
                    break
                hit += 1
            if hit == len(request.blocks):
                hit += sum(1 for block in self.idle if isinstance(block, tuple) and block[0] == request.number)
        shared = sum(1 for block in request.blocks if block in pinned) if self.engine.prefix_caching else 0
        if self._used(decoding) + self._blocks(length) - shared > self.engine.blocks:
            return False
        if self.engine.prefix_caching:
            sequence.holds = list(request.blocks)
            mine = [b for b in self.idle if isinstance(b, tuple) and b[0] == request.number]
            self.idle = [b for b in self.idle if b not in sequence.holds and b not in mine]
        sequence.target = length
        sequence.computed = min(hit, (length - 1) // size) * size
        if request.number not in self._first:
            self._cached[request.number] = sequence.computed
        self.running.append(sequence)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._evict([])
        self._release(sequence)
        number = sequence.request.number
        self._preempted[number] = self._preempted.get(number, 0) + 1
        sequence.computed = 0
        self.waiting.append(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Its blocks are idle from now on, of the whole ones the last first."""
        self.running.remove(sequence)
        if not self.engine.prefix_caching:
            return
        whole = sequence.computed // self.engine.block_tokens
        for place in range(whole - 1, len(sequence.holds) - 1, -1):
            self.idle.append((sequence.request.number, place))
        pinned = {block for s in self.running for block in s.holds}
        for place in range(len(sequence.holds) - 1, -1, -1):
            if place < whole and sequence.holds[place] not in pinned:
                self.idle.append(sequence.holds[place])
        sequence.holds = []

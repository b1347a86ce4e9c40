"""Small models of an engine, to see what an order of rows is worth."""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

from batch_jobs.input.prepared import Prepared
from batch_jobs.ordering.window import Window

LARGE = 1 << 40
BLOCK_CHARS = 64


def row(number: int, prefix: str = "", prompt: float = 100, output: float = 10) -> Prepared:
    return Prepared(number, b"%d" % number, prefix, prompt, output)


def numbers(rows: Iterable[Prepared]) -> list[int]:
    return [each.number for each in rows]


def served(rows: Sequence[Prepared], window: Window, engine: str = "e", step: int = 1) -> list[Prepared]:
    """What one engine gets when the window is kept as full as it may be."""
    order: list[Prepared] = []
    fed = 0
    while True:
        upto = min(len(rows), fed + window.room)
        if fed < len(rows):
            window.add(rows[fed:upto])
            fed = upto
            if fed == len(rows):
                window.close()
        taken = window.take(engine, step)
        order += taken
        if not taken:
            return order


class PrefixCache:
    """Blocks of prefixes in an LRU. At most `in_flight` rows run, fewer when their blocks do not all fit; blocks of
    rows that run stay, the least recently used of the others make room."""

    def __init__(self, capacity_blocks: int, in_flight: int = 64) -> None:
        self.capacity = capacity_blocks
        self._blocks: OrderedDict[str, int] = OrderedDict()  # block -> how many running rows use it
        self._running: deque[list[str]] = deque()
        self._in_flight = in_flight
        self.hits = self.misses = 0

    def run(self, prefix: str) -> None:
        names = [prefix[:end] for end in range(BLOCK_CHARS, len(prefix) + 1, BLOCK_CHARS)]
        while len(self._running) >= self._in_flight or self._used(names) > self.capacity:
            for block in self._running.popleft():
                self._blocks[block] -= 1
        hit = next((place for place, name in enumerate(names) if name not in self._blocks), len(names))
        self.hits += hit
        self.misses += len(names) - hit
        for name in reversed(names):  # the end of a prefix goes first
            self._blocks[name] = self._blocks.pop(name, 0) + 1
        self._running.append(names)
        idle = [name for name, users in self._blocks.items() if not users]
        for name in idle[: max(0, len(self._blocks) - self.capacity)]:
            del self._blocks[name]

    def _used(self, more: list[str]) -> int:
        return len({name for name, users in self._blocks.items() if users}.union(more))

    @property
    def hit_rate(self) -> float:
        return self.hits / (self.hits + self.misses)


def hit_rate(rows: Iterable[Prepared], capacity_blocks: int, in_flight: int = 64) -> float:
    cache = PrefixCache(capacity_blocks, in_flight)
    for each in rows:
        cache.run(each.prefix)
    return cache.hit_rate


def makespan(rows: Iterable[Prepared], slots: int) -> float:
    """Steps until the last row is done, one output token a step in each slot."""
    free = [0.0] * slots
    for each in rows:
        heapq.heappush(free, heapq.heappop(free) + each.output_tokens)
    return max(free)


def memory_in_flight(rows: Iterable[Prepared], slots: int) -> list[float]:
    """Mean KV tokens read per running row, at each start of a row once all slots are busy."""
    running: list[tuple[float, int, Prepared]] = []
    seen = []
    for place, each in enumerate(rows):
        now = heapq.heappop(running)[0] if len(running) == slots else 0.0
        heapq.heappush(running, (now + each.output_tokens, place, each))
        if len(running) == slots:
            seen.append(sum(one.input_tokens + one.output_tokens / 2 for _, _, one in running) / slots)
    return seen

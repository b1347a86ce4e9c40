"""Role: the cheapest mix of accelerator types. Owns: Mélange's integer program (arXiv 2404.14527) and an exact search.

    min sum_g c_g B_g    s.t.  every slice on one type,  sum of loads on g <= B_g,  B_g whole

A bucket's rate is cut into `slices` equal parts; a part loads type g with rate / (highest rate of one g for that
bucket). Parts of a bucket are alike, so a node of the search says how many of them each type gets. Branch and bound:
what is placed costs c_g for every GPU begun; what is not costs at least its cheapest share, of which the room on GPUs
begun takes c_g a GPU. Exact while `nodes` last; after that the best so far, and `proven` is false.
Must not know: why a type has its rate or price.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

SLICES: Final = 4
"""As many suffice in the paper."""
NODES: Final = 200_000
"""Bounds that are worked out: some seconds."""
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Fleet:
    """How many of each type, and which share of each bucket goes where."""

    counts: dict[str, int]
    usd_per_hour: float
    shares: tuple[dict[str, float], ...]
    proven: bool
    """No cheaper fleet exists (for these slices)."""


def cheapest_fleet(
    rates: Sequence[float],
    highest: Mapping[str, Sequence[float]],
    usd_per_hour: Mapping[str, float],
    slices: int = SLICES,
    nodes: int = NODES,
) -> Fleet | None:
    """`rates` by bucket; `highest[type]` by bucket, 0 where the type cannot serve it. None: some bucket nobody can."""
    types = [name for name in highest if any(highest[name])]
    used = [(number, rate) for number, rate in enumerate(rates) if rate > 0]
    loads = [
        [rate / slices / highest[name][number] if highest[name][number] else math.inf for name in types]
        for number, rate in used
    ]
    if any(all(math.isinf(load) for load in row) for row in loads):
        return None
    search = _Search(loads, [usd_per_hour[name] for name in types], slices, nodes)
    parts = search.run()
    shares: list[dict[str, float]] = [{} for _ in rates]
    for (number, _), row in zip(used, parts, strict=True):
        shares[number] = {name: part / slices for name, part in zip(types, row, strict=True) if part}
    counts = {name: count for name, count in zip(types, search.counts(parts), strict=True) if count}
    return Fleet(
        counts, sum(usd_per_hour[name] * count for name, count in counts.items()), tuple(shares), search.proven
    )


@dataclass
class _Search:
    loads: list[list[float]]
    prices: list[float]
    slices: int
    nodes: int
    proven: bool = True
    _best: list[tuple[int, ...]] = field(default_factory=list)
    _best_usd: float = math.inf
    _order: list[int] = field(default_factory=list)
    _rest: list[float] = field(default_factory=list)

    def run(self) -> list[tuple[int, ...]]:
        """Parts of each bucket by type."""
        # The buckets that cost most first: their place decides most.
        cheapest = [self.slices * min(p * w for p, w in zip(self.prices, row, strict=True)) for row in self.loads]
        self._order = sorted(range(len(self.loads)), key=lambda number: -cheapest[number])
        self._rest = [0.0]
        for number in reversed(self._order):
            self._rest.append(self._rest[-1] + cheapest[number])
        self._rest.reverse()
        self._visit(0, [0.0] * len(self.prices), [])
        found = dict(zip(self._order, self._best, strict=True))
        return [found[number] for number in range(len(self.loads))]

    def counts(self, parts: Sequence[tuple[int, ...]]) -> list[int]:
        totals = [0.0] * len(self.prices)
        for row, split in zip(self.loads, parts, strict=True):
            totals = _added(totals, row, split)
        return [_whole(total) for total in totals]

    def _visit(self, depth: int, totals: list[float], chosen: list[tuple[int, ...]]) -> None:
        if self._bound(depth, totals) >= self._best_usd - _ROUNDING:
            return
        if depth == len(self._order):
            self._best_usd, self._best = self._bound(depth, totals), list(chosen)
            return
        if self.nodes <= 0 and self._best:
            self.proven = False
            return
        row = self.loads[self._order[depth]]
        children = [(self._bound(depth + 1, after), split, after) for split, after in self._splits(row, totals)]
        self.nodes -= len(children)
        for _, split, after in sorted(children, key=lambda child: (child[0], child[1])):
            self._visit(depth + 1, after, [*chosen, split])

    def _splits(self, row: Sequence[float], totals: Sequence[float]) -> Iterator[tuple[tuple[int, ...], list[float]]]:
        for split in _compositions(self.slices, [not math.isinf(load) for load in row]):
            yield split, _added(totals, row, split)

    def _bound(self, depth: int, totals: Sequence[float]) -> float:
        """At least what any completion costs."""
        begun = sum(price * _whole(total) for price, total in zip(self.prices, totals, strict=True))
        spare = sum(price * (_whole(total) - total) for price, total in zip(self.prices, totals, strict=True))
        return begun + max(0.0, self._rest[depth] - spare)


def _added(totals: Sequence[float], row: Sequence[float], split: Sequence[int]) -> list[float]:
    return [total + load * part if part else total for total, load, part in zip(totals, row, split, strict=True)]


def _whole(load: float) -> int:
    return math.ceil(load - _ROUNDING)


def _compositions(parts: int, usable: Sequence[bool]) -> Iterator[tuple[int, ...]]:
    """Every way to give `parts` to the usable places."""
    if len(usable) == 1:
        if usable[0] or not parts:
            yield (parts,)
        return
    for first in range(parts + 1) if usable[0] else (0,):
        for rest in _compositions(parts - first, usable[1:]):
            yield (first, *rest)

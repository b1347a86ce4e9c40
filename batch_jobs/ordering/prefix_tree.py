"""Rows that share a prefix, put side by side.

Role: the order of a known set of rows and the units in which they are given out. Owns: the prefix tree.
Must not know: engines, windows, what was computed before.

BlendServe, section 4: build the prefix tree, sort children by density at every node with subtrees kept whole, flatten.

- Rows are grouped by their first `min_shared_chars` (a hash each); rows alone in their group are done. Only groups are
  sorted by text, and the common prefix of neighbours is found by bisection over slices, in blocks: engines share KV in
  blocks of tokens, so a few characters more mean nothing.
- The tree of a group comes from these common lengths with one stack (as a suffix tree from an LCP array).
- A *unit* is what one engine should run together: a whole group, or a piece of at most `unit_rows` rows of it. A
  subtree that fits in a unit is never cut, so cuts are where the least is shared.

O(n log n) comparisons of strings, no recursion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from batch_jobs.input.prepared import CHARS_PER_TOKEN, Prepared
from batch_jobs.ordering.density import compute_work, density_class, memory_work


@dataclass(frozen=True, slots=True)
class Sharing:
    """What counts as a shared prefix, and how many rows run on one."""

    min_shared_chars: int = 256
    """Less is not worth keeping rows together."""
    block_chars: int = 64
    """About 16 tokens, the usual KV block."""
    unit_rows: int = 64
    """Most rows of one unit: enough to pay for the prefix, few enough to be spread over engines."""


@dataclass(slots=True)
class Costs:
    """Work of each row; `order_units` takes shared prompt tokens off `compute` of all rows but a unit's first."""

    compute: list[float]
    memory: list[float]

    @staticmethod
    def of(rows: Sequence[Prepared], output_factor: float = 1.0) -> Costs:
        outputs = [row.output_tokens * output_factor for row in rows]
        return Costs(
            [compute_work(row.input_tokens, output) for row, output in zip(rows, outputs, strict=True)],
            [memory_work(row.input_tokens, output) for row, output in zip(rows, outputs, strict=True)],
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """Places in the list of rows that was ordered: a unit, or a run of rows that share nothing and count as equal."""

    members: list[int]
    shared_chars: int
    """What all members share. 0: each is a unit of its own; they are in one object because there are many of them."""


class _Node:
    """A subtree; a leaf (`children` empty) is one row."""

    __slots__ = ("children", "compute", "depth_chars", "first", "index", "memory", "size")

    def __init__(self, depth_chars: int) -> None:
        self.depth_chars = depth_chars
        self.children: list[_Node] = []
        self.index = -1
        self.size = 0
        self.compute = 0.0
        self.memory = 0.0
        self.first = -1

    def add(self, child: _Node) -> None:
        self.children.append(child)
        self.size += child.size
        self.compute += child.compute
        self.memory += child.memory
        if self.first < 0 or child.first < self.first:
            self.first = child.first

    def rank(self) -> tuple[int, int]:
        return density_class(self.compute, self.memory), self.first

    def sort(self) -> None:
        self.children.sort(key=_Node.rank)

    def leaves(self) -> Iterator[_Node]:
        stack = [self]
        while stack:
            node = stack.pop()
            if node.children:
                node.sort()
                stack.extend(reversed(node.children))
            else:
                yield node


def order_units(rows: Sequence[Prepared], costs: Costs, sharing: Sharing) -> list[Piece]:
    """All rows in units, from memory-bound to compute-bound; among equals in the order of the input."""
    groups, single = _groups(rows, sharing.min_shared_chars)
    runs: dict[int, list[int]] = {}
    for index in single:
        runs.setdefault(density_class(costs.compute[index], costs.memory[index]), []).append(index)
    ranked: list[tuple[int, int, list[Piece]]] = []
    for level, run in runs.items():
        run.sort(key=lambda index: rows[index].number)
        ranked.append((level, rows[run[0]].number, [Piece(run, 0)]))
    for group in groups:
        tree = _tree(rows, group, costs, sharing)
        ranked.append((*tree.rank(), _cut(tree, costs, sharing.unit_rows)))
    ranked.sort(key=lambda entry: entry[:2])
    return [piece for _, _, pieces in ranked for piece in pieces]


def shared_chars(one: str, other: str, known: int, block: int) -> int:
    """Common prefix of two texts that agree in their first `known` characters, in whole blocks beyond these."""
    low, high = 0, (min(len(one), len(other)) - known) // block
    while low < high:
        middle = (low + high + 1) // 2
        start, end = known + low * block, known + middle * block
        if one[start:end] == other[start:end]:
            low = middle
        else:
            high = middle - 1
    return known + low * block


def _groups(rows: Sequence[Prepared], min_chars: int) -> tuple[list[list[int]], list[int]]:
    """Places of rows with the same first `min_chars`, and of those that share them with no other."""
    by_head: dict[str, list[int]] = {}
    single: list[int] = []
    for index, row in enumerate(rows):
        prefix = row.prefix
        if len(prefix) < min_chars:
            single.append(index)
            continue
        head = prefix[:min_chars]
        group = by_head.get(head)
        if group is None:
            by_head[head] = [index]
        else:
            group.append(index)
    single += [group[0] for group in by_head.values() if len(group) == 1]
    return [group for group in by_head.values() if len(group) > 1], single


def _tree(rows: Sequence[Prepared], group: list[int], costs: Costs, sharing: Sharing) -> _Node:
    group.sort(key=lambda index: rows[index].prefix)
    root = _Node(sharing.min_shared_chars)
    stack, leaf = [root], _leaf(rows, group[0], costs)
    for before, index in pairwise(group):
        shared = shared_chars(rows[before].prefix, rows[index].prefix, root.depth_chars, sharing.block_chars)
        _place(stack, leaf, shared)
        leaf = _leaf(rows, index, costs)
    _place(stack, leaf, root.depth_chars)
    tree = root.children[0] if len(root.children) == 1 else root
    tree.compute += root.depth_chars / CHARS_PER_TOKEN
    return tree


def _place(stack: list[_Node], leaf: _Node, shared: int) -> None:
    """Add a leaf that shares `shared` characters with the next one; `stack` is the path from the root to it."""
    if shared > stack[-1].depth_chars:
        stack.append(_Node(shared))
    # What its parent shares is paid for once, by the parent: it must not set one of its rows apart from the others.
    leaf.compute = max(1.0, leaf.compute - stack[-1].depth_chars / CHARS_PER_TOKEN)
    stack[-1].add(leaf)
    while stack[-1].depth_chars > shared:
        node = stack.pop()
        if stack[-1].depth_chars < shared:
            stack.append(_Node(shared))
        node.compute += (node.depth_chars - stack[-1].depth_chars) / CHARS_PER_TOKEN
        stack[-1].add(node)


def _leaf(rows: Sequence[Prepared], index: int, costs: Costs) -> _Node:
    leaf = _Node(len(rows[index].prefix))
    leaf.index, leaf.size, leaf.first = index, 1, rows[index].number
    leaf.compute, leaf.memory = costs.compute[index], costs.memory[index]
    return leaf


def _cut(tree: _Node, costs: Costs, unit_rows: int) -> list[Piece]:
    """The flattened tree in pieces; whole subtrees are packed while they fit."""
    pieces: list[Piece] = []
    members: list[int] = []
    shared = 0
    stack = [(tree, 0)]  # a subtree, and what it shares with the leaf before it
    while stack:
        node, link = stack.pop()
        if node.size > unit_rows:
            node.sort()
            links = [link, *[node.depth_chars] * (len(node.children) - 1)]
            stack.extend(reversed(list(zip(node.children, links, strict=True))))
            continue
        if members and len(members) + node.size > unit_rows:
            pieces.append(Piece(members, shared))
            members = []
        shared = min(shared, link, node.depth_chars) if members else node.depth_chars
        for leaf in node.leaves():
            costs.compute[leaf.index] = leaf.compute
            members.append(leaf.index)
    pieces.append(Piece(members, shared))
    for piece in pieces:
        costs.compute[piece.members[0]] += piece.shared_chars / CHARS_PER_TOKEN
    return pieces

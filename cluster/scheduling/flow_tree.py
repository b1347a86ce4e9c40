"""Hierarchical weighted fairness: a tree of virtual token counters (VTC, OSDI'24, arXiv 2401.00588).

Every node counts the service its subtree got, divided by its weight. From the root downwards the child with the
smallest counter goes next: tenant, then API key, then program. Splitting one's work over more keys or programs
therefore changes nothing for the tenant, and a new identity below a tenant lives inside the tenant's share.

Lift: a node that comes to wait starts at no less than the smallest counter among its waiting siblings, or, if none
wait, at that of the last one to leave. So idle time earns no credit, and neither does time during which a limit held
the node.

Bound (theorem 4.4, at every level): two siblings that wait all the time differ by at most 2U in service per weight,
`U = max(w_in * longest input, w_out * tokens that fit in the running batch)`.

Cost: a counter that rises leaves its place in the parent's heap as it is; the place is put right when it comes to the
top. So charging is O(depth), choosing O(depth * log siblings) amortised.

Owns: counters and who goes next. Must not know: tickets, replicas, limits, time, other classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count

Path = tuple[str, ...]
_order = count()
"""Breaks ties: of two equal counters the one that took its place first goes first, so newcomers cannot starve it."""


class FlowNode:
    """One tenant, key or program. `line` is the heap of children that wait and are not held."""

    __slots__ = (
        "children",
        "counter",
        "floor",
        "held",
        "keeps_place",
        "last_left",
        "level",
        "line",
        "name",
        "parent",
        "place",
        "running",
        "waiting",
        "weight",
    )

    def __init__(self, name: str, parent: FlowNode | None, weight: float = 1.0) -> None:
        self.name = name
        self.parent = parent
        self.weight = weight
        self.counter = parent.floor if parent is not None else 0.0
        self.waiting = 0
        self.running = 0
        """Of a leaf: requests that run. They keep it from being forgotten."""
        self.held = False
        self.place: float | None = None
        """The counter under which the node stands in its parent's line; None while it does not."""
        self.keeps_place = False
        """Restored after a restart and not waiting again yet: tickets that are brought back find the counter as it was,
        however many of the siblings' tickets were brought back before."""
        self.children: dict[str, FlowNode] = {}
        self.line: list[tuple[float, int, FlowNode]] = []
        self.last_left: FlowNode | None = None
        self.floor: float = 0.0
        """Where a child not known (any more) starts: nothing is gained by having been forgotten."""
        self.level = 0.0
        """Locality-aware mode: children below this counter may go (see `locality`)."""

    @property
    def path(self) -> Path:
        return () if self.parent is None else (*self.parent.path, self.name)

    def head(self) -> FlowNode | None:
        """The waiting child with the smallest counter."""
        line = self.line
        if len(line) == 1:
            place, _, child = line[0]
            if child.place == place:
                return child  # it stands alone, so its place does not matter
        return self._smallest()

    def _smallest(self) -> FlowNode | None:
        """The head, its place put right."""
        line = self.line
        while line:
            place, _, child = line[0]
            counter = child.counter
            if child.place == counter == place:
                return child
            if child.place != place:
                heappop(line)
            else:
                child.place = counter
                heapreplace(line, (counter, next(_order), child))
        return None

    def lift(self) -> float:
        """The counter at which a child that comes to wait starts at least."""
        # Also when it stands alone it gets its place: who joins is lifted to this counter, and must not win the tie.
        head = self._smallest()
        if head is not None:
            return head.counter
        return self.floor if self.last_left is None else max(self.floor, self.last_left.counter)

    def join(self, child: FlowNode) -> None:
        """`child` comes to wait, or is no longer held."""
        if child.keeps_place:
            child.keeps_place = False
        else:
            child.counter = max(child.counter, self.lift())
        self._stand(child)

    def leave(self, child: FlowNode) -> None:
        """`child` has nothing waiting any more, or is held."""
        child.place = None
        self.last_left = child

    def fall(self, child: FlowNode) -> None:
        """The counter of a standing `child` has become smaller."""
        self._stand(child)

    def refill(self, quantum: float) -> float:
        """Locality-aware mode: the level below which children may go; raised when no waiting child is below it."""
        head = self.head()
        if head is not None and head.counter >= self.level:
            self.level = head.counter + quantum
        return self.level

    def _stand(self, child: FlowNode) -> None:
        child.place = child.counter
        heappush(self.line, (child.counter, next(_order), child))
        if len(self.line) > 4 * len(self.children) + 64:
            self.line = [entry for entry in self.line if entry[2].place == entry[0]]
            heapify(self.line)


def come(leaf: FlowNode) -> None:
    """One more ticket waits in `leaf`."""
    node = leaf
    while (parent := node.parent) is not None:
        node.waiting += 1
        if node.waiting == 1 and not node.held:
            parent.join(node)
        node = parent
    node.waiting += 1


def go(leaf: FlowNode) -> None:
    """One ticket fewer waits in `leaf`."""
    node = leaf
    while (parent := node.parent) is not None:
        node.waiting -= 1
        if not node.waiting and not node.held:
            parent.leave(node)
        node = parent
    node.waiting -= 1


def pass_through(leaf: FlowNode) -> None:
    """A ticket came and was served at once: what `come` and `go` do, without a place in any line."""
    node = leaf
    while (parent := node.parent) is not None:
        if not node.waiting:
            node.counter = max(node.counter, parent.lift())
            parent.last_left = node
        node = parent


def charge(leaf: FlowNode, service: float) -> None:
    """Add `service` (negative for a correction) to every counter from `leaf` up, divided by the weights."""
    node = leaf
    parent = node.parent
    while parent is not None:
        node.counter += service / node.weight
        if service < 0 and node.place is not None and node.counter < node.place:
            parent.fall(node)
        node, parent = parent, parent.parent


def hold(node: FlowNode) -> None:
    """Leave `node` out of the choice (its tenant runs as many requests as it may)."""
    if not node.held:
        node.held = True
        if node.waiting and node.parent is not None:
            node.parent.leave(node)


def unhold(node: FlowNode) -> None:
    if node.held:
        node.held = False
        node.keeps_place = False  # time held by a limit earns nothing, after a restart neither
        if node.waiting and node.parent is not None:
            node.parent.join(node)


def forget(leaf: FlowNode) -> bool:
    """Drop an idle leaf, and what it leaves empty above it, if their counters earn them nothing: coming back they would
    start where they are now. All of it or nothing: a key without flows would not be looked at again."""
    node = leaf
    while (parent := node.parent) is not None:
        if node.counter > parent.lift():
            return False
        if len(parent.children) > 1 or parent.parent is None:
            parent.floor = max(parent.floor, node.counter)
            del parent.children[node.name]
            return True
        node = parent
    return False


def alive(root: FlowNode) -> Iterator[FlowNode]:
    """Nodes, level by level, whose counters must outlive this process: they wait, run, or are above the lift."""
    level = [root]
    while level:
        below: list[FlowNode] = []
        for node in level:
            lift = node.lift()
            below += [c for c in node.children.values() if c.waiting or c.running or c.children or c.counter > lift]
        yield from below
        level = below

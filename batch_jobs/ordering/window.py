"""The rows that wait: a bounded window over the input, out of which engines take theirs in a good order.

Role: what the work ledger asks for rows. Owns: every row between `add` and `take`. Must not know: Ray, clocks, which
rows are finished. One caller at a time.

Rows that are added wait unplanned until the plan is used up or they are half of all that wait. Then everything that is
left is planned anew together with them, so that rows of one prefix come together across plans. Each plan of n rows
follows n / 2 arrivals, which makes O(log n) per row.

Served in this order: rows put back, the engine's open units, the plan, and when all that is empty half of the largest
open unit of another engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from batch_jobs.input.prepared import Prepared
from batch_jobs.ordering.dual_scan import DualScan
from batch_jobs.ordering.output_scale import OutputScale
from batch_jobs.ordering.plan import Plan, plan_units, tail_plan
from batch_jobs.ordering.prefix_tree import Sharing
from batch_jobs.ordering.unit import Unit

FIRST_ROW_BYTES = 4096
"""The size of a row, before one has been seen."""
TAIL = 1.5
"""The tail begins when what is left takes this many times as long as the longest row. 1 would do if that were looked at
after every row and all slots were free at that moment; they are busy with rows begun before."""


class Window:
    def __init__(
        self,
        max_rows: int,
        max_bytes: int,
        *,
        order: bool = True,
        sharing: Sharing | None = None,
        slots: int | None = None,
    ) -> None:
        """`order=False`: first in, first out. `slots`: how many rows all engines run at once, which says when the tail
        begins (0: there is none); None: the sum of the most that each engine asked for."""
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self.slots = slots
        self._order = order
        self._sharing = sharing or Sharing()
        self._returned: deque[Prepared] = deque()
        self._arrived: deque[Prepared] = deque()
        self._plan = Plan()
        self._plans_made = 0
        self._engines: dict[str, DualScan] = {}
        self._asked: dict[str, int] = {}
        self._scale = OutputScale()
        self._closed = False
        self._look_for_tail_at = 0
        self._rows = self._bytes = 0
        self._rows_seen = self._bytes_seen = 0

    def __len__(self) -> int:
        return self._rows

    @property
    def size_bytes(self) -> int:
        return self._bytes

    @property
    def room(self) -> int:
        """How many rows may be added, taking them to be as large as those before. An empty window has room for one,
        whatever its size, or a row larger than the window would never run."""
        seen = self._bytes_seen / self._rows_seen if self._rows_seen else FIRST_ROW_BYTES
        held = self._bytes / self._rows if self._rows else 0.0
        by_bytes = int((self.max_bytes - self._bytes) / max(1.0, seen, held))
        return max(min(self.max_rows - self._rows, by_bytes), 0 if self._rows else 1)

    def add(self, rows: Sequence[Prepared]) -> None:
        """New rows of the input; the caller looks at `room` before."""
        if self._closed:
            raise ValueError("rows were added to a window that is closed")
        size = self._count(rows)
        self._rows_seen += len(rows)
        self._bytes_seen += size
        self._arrived.extend(rows)

    def put_back(self, rows: Sequence[Prepared]) -> None:
        """Rows that were taken and not done. They are served first, and may exceed the bounds."""
        self._count(rows)
        self._returned.extend(rows)

    def close(self) -> None:
        """The input has ended: no more rows are added (they may still be put back)."""
        if not self._closed:
            self._closed = True
            self._look_for_tail_at = self._rows

    def observe(self, input_tokens_estimated: float, output_estimated: float, output_actual: float) -> None:
        """A row has finished; later plans expect outputs accordingly. (Prompts are known well enough.)"""
        self._scale.observe(output_estimated, output_actual)

    def take(self, engine: str, count: int) -> list[Prepared]:
        """The next rows of an engine, fewer than `count` only when nothing else waits."""
        self._asked[engine] = max(count, self._asked.get(engine, 0))
        taken = self._gone(_pop(self._returned, count))
        if self._order:
            return taken + self._ordered(engine, count - len(taken))
        return taken + self._gone(_pop(self._arrived, count - len(taken)))

    def forget(self, engine: str) -> None:
        """The engine is gone; what it had open goes to others."""
        self._asked.pop(engine, None)
        scan = self._engines.pop(engine, None)
        if scan is None:
            return
        if scan.left is not None:
            self._plan.give_back(scan.left, left=True)
        if scan.right is not None:
            self._plan.give_back(scan.right, left=False)

    def _count(self, rows: Sequence[Prepared]) -> int:
        size = sum(row.size_bytes for row in rows)
        self._rows += len(rows)
        self._bytes += size
        return size

    def _gone(self, rows: list[Prepared]) -> list[Prepared]:
        self._rows -= len(rows)
        self._bytes -= sum(row.size_bytes for row in rows)
        return rows

    def _ordered(self, engine: str, count: int) -> list[Prepared]:
        scan = self._engines.get(engine)
        if scan is None:
            scan = self._engines[engine] = DualScan()
        taken: list[Prepared] = []
        while len(taken) < count:
            self._plan_if_due()
            if not (scan.open_units() or self._plan.rows or self._steal(scan)):
                break
            # What is planned now may be used up before `count` while others have arrived: hence the loop.
            taken += self._gone(scan.take(self._plan, count - len(taken)))
        return taken

    def _plan_if_due(self) -> None:
        many = self._closed or len(self._arrived) >= self._rows / 2
        if self._arrived and (many or not self._plan.rows):
            self._plan_anew(with_open=many)
        if self._closed and not self._plan.by_output and self._in_tail():
            # Open units as well: their engines would go on with short rows while long ones wait.
            units = self._waiting_units()
            for scan in self._engines.values():
                scan.close_units()
            self._plan = tail_plan(units)

    def _in_tail(self) -> bool:
        """Whether the longest output waiting takes more than its share of the time that is left: with all slots busy
        that is the sum of outputs / slots. Looked at again whenever a quarter of the rows has gone."""
        if self._rows > self._look_for_tail_at:
            return False
        self._look_for_tail_at = self._rows * 3 // 4
        outputs = [row.output_tokens for unit in self._waiting_units() for row in unit.rows[unit.at :]]
        slots = sum(self._asked.values()) if self.slots is None else self.slots
        return bool(slots and outputs) and sum(outputs) <= TAIL * slots * max(outputs)

    def _waiting_units(self) -> list[Unit]:
        return [unit for scan in self._engines.values() for unit in scan.open_units()] + self._plan.units()

    def _plan_anew(self, with_open: bool) -> None:
        """Plan what is left and what has arrived. Open units take part only when much has arrived, or their rows would
        be planned again for each newcomer; an engine then keeps the units with the rows that it would get next."""
        rows: list[Prepared] = []
        ages: list[int] = []
        opened: dict[int, tuple[DualScan, bool]] = {}
        for scan in self._engines.values() if with_open else ():
            for unit, left in ((scan.left, True), (scan.right, False)):
                if unit is not None:
                    opened[id(unit.rows[unit.at])] = (scan, left)
            _collect(scan.close_units(), rows, ages)
        _collect(self._plan.units(), rows, ages)
        self._plans_made += 1
        ages += [self._plans_made] * len(self._arrived)
        rows += self._arrived
        self._arrived.clear()
        units = plan_units(rows, ages, self._scale.factor, self._sharing)
        self._plan = Plan(units if not opened else _reopen(units, opened))

    def _steal(self, thief: DualScan) -> bool:
        opened = [unit for scan in self._engines.values() for unit in scan.open_units()]
        if not opened:
            return False
        victim = max(opened, key=len)
        kept, thief.left = victim.halves()
        for scan in self._engines.values():
            if scan.left is victim:
                scan.left = kept
            if scan.right is victim:
                scan.right = kept
        return True


def _pop(rows: deque[Prepared], count: int) -> list[Prepared]:
    return [rows.popleft() for _ in range(min(count, len(rows)))]


def _collect(units: Sequence[Unit], rows: list[Prepared], ages: list[int]) -> None:
    for unit in units:
        rows += unit.rows[unit.at :]
        ages += unit.ages[unit.at :]


def _reopen(units: list[Unit], opened: dict[int, tuple[DualScan, bool]]) -> list[Unit]:
    """Give engines the units that hold the rows named in `opened`; the rest. Of two engines the first gets it."""
    rest = []
    for unit in units:
        found = (opened[id(row)] for row in unit.rows if id(row) in opened) if unit.shared_chars else iter(())
        owner = next(found, None)
        if owner is None:
            rest.append(unit)
        elif owner[1]:
            owner[0].left = unit
        else:
            owner[0].right = unit
    return rest

"""What one engine is given next: BlendServe's dual scan.

Role: one engine's place in the plan. Owns: the engine's open units and the sums of what it got lately.
Must not know: other engines, the window.

The engine has a unit open at the left end of the plan (memory-bound) and one at the right end (compute-bound). The
next row comes from the side that brings compute / memory of its recent rows closer to the density of the plan. What is
compared is `compute - density * memory`, which is 0 exactly when the ratio is met: unlike the ratio itself it does not
call a mix better for being larger.

Recent: each row taken fades what came before by FADE, so the sums speak of about the last 1 / (1 - FADE) rows, the
order of what an engine runs at once. Sums over everything would answer an early excess of one kind, long finished, with
as long a run of the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from batch_jobs.input.prepared import Prepared
from batch_jobs.ordering.plan import Plan
from batch_jobs.ordering.unit import Unit

FADE = 1 - 1 / 128


class DualScan:
    __slots__ = ("_compute", "_memory", "left", "right")

    def __init__(self) -> None:
        self.left: Unit | None = None
        self.right: Unit | None = None
        self._compute = 0.0
        self._memory = 0.0

    def take(self, plan: Plan, count: int) -> list[Prepared]:
        """At most `count` rows, fewer only when the plan and the open units are used up."""
        taken: list[Prepared] = []
        while len(taken) < count:
            left, right = self.left or plan.first(), self.right or plan.last()
            if left is None and right is None:
                break
            if left is None or right is None or left.level == right.level:
                # Nothing to balance: rows of one unit at a time, the left one first to keep the order of the input.
                side_left, wanted = left is not None, count - len(taken)
            else:
                side_left, wanted = self._prefers_left(left, right, plan.density), 1
            taken += self._take_side(plan, side_left, wanted)
        return taken

    def open_units(self) -> list[Unit]:
        return [unit for unit in (self.left, self.right) if unit is not None]

    def close_units(self) -> list[Unit]:
        units = self.open_units()
        self.left = self.right = None
        return units

    def _prefers_left(self, left: Unit, right: Unit, density: float) -> bool:
        excess = (self._compute - density * self._memory) * FADE
        with_left = excess + left.compute[left.at] - density * left.memory[left.at]
        with_right = excess + right.compute[right.at] - density * right.memory[right.at]
        return abs(with_left) <= abs(with_right)

    def _take_side(self, plan: Plan, left: bool, count: int) -> Sequence[Prepared]:
        opened = self.left if left else self.right
        unit = opened or (plan.first() if left else plan.last())
        assert unit is not None
        if opened is None and unit.shared_chars:
            opened = plan.pop(left=left)
        start = unit.at
        rows = unit.take(count)
        if len(rows) == 1:  # the common case where the sides differ
            self._compute = self._compute * FADE + unit.compute[start]
            self._memory = self._memory * FADE + unit.memory[start]
        else:
            fade = FADE ** len(rows)
            self._compute = self._compute * fade + sum(unit.compute[start : unit.at])
            self._memory = self._memory * fade + sum(unit.memory[start : unit.at])
        if opened is None:
            plan.taken_in_place(len(rows), left=left)
        elif left:
            self.left = unit if len(unit) else None
        else:
            self.right = unit if len(unit) else None
        return rows

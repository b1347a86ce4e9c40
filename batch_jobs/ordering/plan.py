"""The planned list of units, from which engines are served.

Role: turns rows into a list that is taken from both ends. Owns: units that no engine has opened, and the mean density.
Must not know: who takes, how many rows may wait.

Units are kept by age, the plan in which their oldest row was first seen, and older ones are used up first. Without that
the ends of each new plan would be served for ever, and rows of middling density would fill the window until the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from batch_jobs.input.prepared import Prepared
from batch_jobs.ordering.prefix_tree import Costs, Sharing, order_units
from batch_jobs.ordering.unit import Unit


class _Aged:
    """The units of one age, in order."""

    def __init__(self) -> None:
        self.units: deque[Unit] = deque()
        self.compute = 0.0
        self.memory = 0.0

    def add(self, unit: Unit) -> None:
        self.units.append(unit)
        self.compute += sum(unit.compute)
        self.memory += sum(unit.memory)


class Plan:
    def __init__(self, units: Iterable[Unit] = (), *, by_output: bool = False) -> None:
        """`by_output`: the units are to be taken as they are given, from the left."""
        self.by_output = by_output
        self.rows = 0
        by_age: dict[int, _Aged] = {}
        for unit in units:
            by_age.setdefault(0 if by_output else min(unit.ages), _Aged()).add(unit)
            self.rows += len(unit)
        self._aged = deque(by_age[age] for age in sorted(by_age))

    @property
    def density(self) -> float:
        """Mean rho of the rows that are being used up: the density that every engine's mix should have. With that of
        all rows that wait, one end would be used up before the other whenever ages differ."""
        return self._aged[0].compute / self._aged[0].memory if self._aged and self._aged[0].memory else 1.0

    def first(self) -> Unit | None:
        """The most memory-bound of the oldest units."""
        return self._aged[0].units[0] if self._aged else None

    def last(self) -> Unit | None:
        """The most compute-bound of the oldest units; the same as the first where there is only one."""
        return self._aged[0].units[-1] if self._aged and not self.by_output else None

    def pop(self, *, left: bool) -> Unit:
        units = self._aged[0].units
        unit = units.popleft() if left else units.pop()
        if not units:
            self._aged.popleft()
        self.rows -= len(unit)
        return unit

    def taken_in_place(self, count: int, *, left: bool) -> None:
        """Rows were taken out of the run at this end, which stays for all engines until it is empty."""
        self.rows -= count
        if not self._aged[0].units[0 if left else -1]:
            self.pop(left=left)

    def give_back(self, unit: Unit, *, left: bool) -> None:
        """An engine will not use up this unit; it is the next to be opened at its end."""
        if not self._aged:
            self._aged.append(_Aged())
        if left or self.by_output:
            self._aged[0].units.appendleft(unit)
        else:
            self._aged[0].units.append(unit)
        self.rows += len(unit)

    def units(self) -> list[Unit]:
        return [unit for aged in self._aged for unit in aged.units]


def plan_units(rows: Sequence[Prepared], ages: Sequence[int], output_factor: float, sharing: Sharing) -> list[Unit]:
    """All rows in units and runs, from memory-bound to compute-bound."""
    costs = Costs.of(rows, output_factor)
    whole = Unit(rows, ages, costs.compute, costs.memory, 0)
    units: list[Unit] = []
    for piece in order_units(rows, costs, sharing):
        if piece.shared_chars:
            units.append(whole.part(piece.members, piece.shared_chars))
        else:
            by_age: dict[int, list[int]] = {}
            for place in piece.members:
                by_age.setdefault(ages[place], []).append(place)
            units += [whole.part(members, 0) for members in by_age.values()]
    return units


def tail_plan(units: Iterable[Unit]) -> Plan:
    """Longest expected output first (LPT): a long row that starts last leaves every other slot idle while it runs."""
    parts = [part for unit in units for part in unit.longest_first()]
    parts.sort(key=lambda part: -part.rows[0].output_tokens)
    return Plan(parts, by_output=True)

"""Engines come, work, die and hand back in any order: a state machine over the ledger."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from batch_jobs.ordering.window import Window
from batch_jobs.work.ledger import Ledger
from batch_jobs.work.messages import EngineReport, Work
from tests.unit.batch_jobs.test_ledger import Clock, commit, numbers, row, start, take


class AnyOrderOfEvents(RuleBasedStateMachine):
    """Engines come, work, die and hand back in any order: every row is committed exactly once."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.ledger = Ledger(Window(64, 1 << 20), 3, clock=self.clock)
        self.offered = 0
        self.committed: list[int] = []
        self.held: dict[str, list[Work]] = {}
        self.born = 0
        self.parts = 0

    @rule(count=st.integers(1, 12), repeated=st.booleans())
    def offer(self, count: int, repeated: bool) -> None:
        if self.ledger.room < count:
            return
        rows = [row(self.offered + i, bytes([i % 3]) * 16 if repeated else None) for i in range(count)]
        self.ledger.offer(rows)
        self.offered += count

    @rule(seat=st.integers(0, 2))
    def engine(self, seat: int) -> None:
        name = f"{seat}.{self.born}"
        self.born += 1
        start(self.ledger, name, 4, seat=str(seat))
        for other in [other for other in self.held if other.startswith(f"{seat}.")]:
            del self.held[other]
        self.held[name] = []

    @precondition(lambda self: self.held)
    @rule(data=st.data(), want=st.integers(1, 8))
    def ask(self, data: st.DataObject, want: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.held)))
        self.held[name] += take(self.ledger, name, want, seconds=data.draw(st.sampled_from([0.0, 1.0, 9.0])))

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(name for name, work in self.held.items() if work)))
        count = data.draw(st.integers(1, len(self.held[name])))
        done, self.held[name] = self.held[name][:count], self.held[name][count:]
        self.parts += 1
        commit(self.ledger, name, done, f"part{self.parts}")
        self.committed += numbers(done)

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def hand_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(name for name, work in self.held.items() if work)))
        work = self.held[name].pop()
        self.ledger.exchange(name, EngineReport(0, 1.0, 4, 8, returned=(work.number,)))

    @invariant()
    def no_row_twice(self) -> None:
        assert len(self.committed) == len(set(self.committed))
        held = [work.number for each in self.held.values() for work in each]
        assert len(held) == len(set(held)) and not set(held) & set(self.committed)
        if self.ledger.failure is None:
            assert self.ledger.waiting + self.ledger.running + len(self.committed) == self.offered

    def teardown(self) -> None:
        """Whatever happened, the rest can be finished."""
        self.ledger.close()
        self.engine(0)
        (name,) = [name for name in self.held if name.startswith("0.")]
        for other in [other for other in self.held if other != name]:
            self.ledger.seat_lost(other.split(".")[0])
            del self.held[other]
        if self.ledger.failure is not None:  # too many deaths in a row: the job gave up, on purpose
            return
        for _ in range(2 * self.offered + 10):
            if self.ledger.done:
                break
            work = take(self.ledger, name, 4)
            self.parts += 1
            if work:
                commit(self.ledger, name, work, f"part{self.parts}")
                self.committed += numbers(work)
        assert sorted(self.committed) == list(range(self.offered))


AnyOrderOfEvents.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAnyOrderOfEvents = pytest.mark.timeout(120)(AnyOrderOfEvents.TestCase)

"""One group's turn in a round: its doors warmed up, then each case at the engine alone and at every door.

Owns: the order inside a turn, and what is noted of each run. Must not know: how groups are started.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks.gateway_sides import accounts
from benchmarks.gateway_sides.cases import (
    CASES,
    CLOSED,
    SATURATED,
    TEXT,
    Case,
    Figures,
    added,
    cpu_figures,
    figures,
    keeps_up,
    rotated,
    saturated,
)
from benchmarks.gateway_sides.closed_loop import closed
from benchmarks.gateway_sides.load import Door, Outcome
from benchmarks.gateway_sides.open_loop import opened
from benchmarks.gateway_sides.rivals import rivals
from benchmarks.gateway_sides.up import Up
from benchmarks.report import Report

DIRECT = "direct"
WARM_UP_S, WARM_UP_AT_ONCE = 1.5, 16
QUIET_CORES, LOOK_S, SETTLE_AT_MOST_S = 0.25, 1.0, 15.0
CONTENDED_CASES = CLOSED
"""A side with rivals: an open loop below its rate would leave nobody waiting."""


@dataclass(slots=True)
class Turn:
    """One round's measurements of one group."""

    number: int
    group: str
    engine: Door
    up: Up
    sides: Sequence[str]
    cases: Sequence[Case]
    report: Report
    folder: Path
    say: Callable[[str], None]

    def run(self) -> None:
        self._warm_up()
        seen: dict[str, dict[str, Figures]] = {side: {} for side in self.sides}
        for case in self.cases:
            direct = self._measure(case, self.engine, case.direct_seconds)
            self.report.add(self.number, DIRECT, case=case.name, group=self.group, **direct)
            for side in rotated(self.sides, self.number):
                if self._takes(side, case, seen[side]):
                    seen[side][case.name] = self._side(case, side, direct)
        for side in self.sides:
            rps = saturated(seen[side])
            if rps is not None:
                self.report.add(self.number, side, case=SATURATED, rps=rps)
        self.report.add(self.number, self.sides[0], case="memory", **accounts.memory_mib(self.up.pids()))

    def _takes(self, side: str, case: Case, seen: dict[str, Figures]) -> bool:
        if side in self.up.third:
            return case.name in CONTENDED_CASES
        rates = [found["rps"] for name, found in seen.items() if name in CLOSED]
        if keeps_up(case, rates):
            return True
        self.say(f"  {side} {case.name}: left out, it was seen to do {max(rates):.0f} requests/s at most")
        return False

    def _side(self, case: Case, side: str, direct: Figures) -> Figures:
        with contextlib.ExitStack() as stack:
            door = self.up.doors[side]
            if side in self.up.third and case.concurrency == 1:
                stack.enter_context(rivals(door, self.folder))
                door = self.up.third[side]
            before = accounts.read(self.up.pids())
            found = self._measure(case, door, case.seconds)
            used_s = accounts.used_s(before, accounts.read(self.up.pids()))
        found |= added(found, direct)
        self.report.add(self.number, side, case=case.name, **found, **cpu_figures(used_s, found["requests"]))
        shown = ("rps", "added_ttft_p50_ms", "added_ttft_p99_ms", "added_total_p50_ms", "failed")
        self.say(f"  {side} {case.name}: " + ", ".join(f"{name} {found[name]:.4g}" for name in shown))
        return found

    def _measure(self, case: Case, door: Door, seconds: float) -> Figures:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            if case.concurrency:
                load = closed(door, case.prompt, case.concurrency, seconds, case.most)
            else:
                load = opened(door, case.prompt, case.rate_per_s, seconds, f"{case.name}-{self.number}")
            outcome: Outcome = runner.run(load)
        if not outcome.answers:
            raise RuntimeError(f"{door.base_url} answered nothing in case {case.name}")
        if failed := [answer.said for answer in outcome.answers if not answer.ok]:
            self.say(f"  {case.name}: {len(failed)} of {len(outcome.answers)} failed: {failed[0]!r}")
        return figures(outcome)

    def _warm_up(self) -> None:
        """Imports, connections and caches of every door, then quiet: a cluster that has just started is still busy."""
        case = Case("warm-up", WARM_UP_S, WARM_UP_S, concurrency=WARM_UP_AT_ONCE, prompt=TEXT)
        for door in (self.engine, *self.up.doors.values()):
            self._measure(case, door, WARM_UP_S)
        deadline = time.monotonic() + SETTLE_AT_MOST_S
        while time.monotonic() < deadline:
            before = accounts.read(self.up.pids())
            time.sleep(LOOK_S)
            if sum(accounts.used_s(before, accounts.read(self.up.pids())).values()) < QUIET_CORES * LOOK_S:
                return
        self.say(f"  {self.group} is not quiet after {SETTLE_AT_MOST_S:g} s; measured all the same")


def chosen_cases(names: Sequence[str], quick: bool) -> list[Case]:
    """In the order of CASES: what a door can do is seen before an open loop offers it a rate."""
    return [case.shorter() if quick else case for name, case in CASES.items() if name in names]

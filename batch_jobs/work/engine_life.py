"""One engine process as the ledger knows it: what it holds, how fast it is, whether it still lives.

Role: the record of an engine between its registration and its end. Owns: when an engine counts as stuck.
Must not know: which row should go where, Ray, the clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from batch_jobs.engines.base import EngineLimits
from batch_jobs.input.prepared import Prepared
from batch_jobs.work.messages import Copy, EngineReport
from batch_jobs.work.tail import Pace

LOST_S = 60.0
"""An engine that is ready and silent for this long is given up."""


@dataclass(frozen=True)
class Patience:
    """How long an engine is waited for."""

    start_s: float = 600.0
    """Until it is ready."""
    stall_s: float = 3600.0
    """With rows in it and none finished: longer than the longest answer takes."""


class Held(NamedTuple):
    """A row that an engine has, with what was asked of the engine."""

    row: Prepared
    copy: Copy | None = None
    error: str | None = None

    @property
    def runs(self) -> bool:
        """Whether it is in the engine itself: copies and error rows only pass through the process."""
        return self.copy is None and self.error is None


@dataclass
class EngineLife:
    """One engine process, from registration to its last sign of life."""

    id: str
    pool: str
    seat: str
    born_s: float
    seen_s: float
    limits: EngineLimits | None = None
    start_s: float | None = None
    held: dict[int, Held] = field(default_factory=dict)
    busy_s: float = 0.0
    """Time with at least one row, up to the last time it had none."""
    busy_from_s: float | None = None
    report: EngineReport = field(default_factory=lambda: EngineReport(0))
    unpublished: int = 0
    """Rows that it holds and has finished: they wait for their part."""
    recall: int = 0
    progress_s: float = 0.0
    """When a row of it was last committed, or it got rows after having none."""
    apart: bool = False
    """Whether it runs suspects, which nobody else may join."""
    stopped: bool = False
    lost: bool = False

    def busy_until(self, now_s: float) -> float:
        return self.busy_s + (now_s - self.busy_from_s if self.busy_from_s is not None else 0.0)

    def note_busy(self, now_s: float) -> None:
        """Called when rows came or went."""
        if self.held and self.busy_from_s is None:
            self.busy_from_s = self.progress_s = now_s
        elif not self.held and self.busy_from_s is not None:
            self.busy_s, self.busy_from_s = self.busy_until(now_s), None

    def is_stuck(self, now_s: float, patience: Patience, job_done: bool) -> bool:
        """Whether it says nothing, does not come up, or finishes nothing."""
        if self.lost:
            return False
        if self.limits is None:
            return now_s - self.born_s > patience.start_s
        if self.stopped or job_done:
            return False
        stalled = bool(self.held) and now_s - self.progress_s > patience.stall_s
        return stalled or now_s - self.seen_s > LOST_S

    def pace(self) -> Pace:
        held = sum(held.runs for held in self.held.values()) - self.unpublished - self.recall
        return Pace(self.id, max(0, held), self.report.running, self.report.depth, self.report.mean_seconds)

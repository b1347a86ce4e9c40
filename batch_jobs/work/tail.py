"""Who should start which of the last rows, so that all engines end together.

Role: pure arithmetic over measured row times. Owns: shares, refusals and steals at the end of a job.
Must not know: rows, Ray.

An engine that holds d rows, of which r run at once, and whose rows take s seconds from entering it to their end,
finishes d / s rows a second (Little's law, L = lambda W), and a row that starts at once takes s * r / d.
Nobody can wait for ever: the engine whose rows are fastest never refuses, and an engine without a measured time never
does either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """One engine at this moment."""

    engine: str
    held: int
    """Rows given to it and not finished."""
    running: int
    """Rows that it runs at once when full."""
    depth: int
    """Rows that it holds when full: those that run and those that wait inside it."""
    seconds: float
    """Recent time of a row from entering the engine to its end; 0 = not known."""

    @property
    def rate(self) -> float:
        """Rows per second when full."""
        return self.depth / self.seconds if self.seconds > 0 else 0.0

    @property
    def row_seconds(self) -> float:
        """Time of a row that starts at once."""
        return self.seconds * min(self.running, self.depth) / self.depth if self.depth else self.seconds

    @property
    def unstarted(self) -> int:
        """Rows inside that surely have not started: engines run the oldest first, so all beyond `running`."""
        return max(0, self.held - self.running)


def grant(mine: Pace, others: Sequence[Pace], waiting: int, want: int) -> int:
    """How many of the last `waiting` rows to give: all into free slots that pay, further ones only up to the share."""
    if not _worth_starting(mine, others, waiting):
        return 0
    free = max(0, mine.running - mine.held)
    return min(want, waiting, max(free, _share(mine, others, waiting)))


def _share(mine: Pace, others: Sequence[Pace], waiting: int) -> int:
    """Rows to add to mine so that all engines end together: its part of all that is left, less what it has."""
    if not mine.rate:
        return waiting
    known = [mine, *(other for other in others if other.rate)]
    left = waiting + sum(pace.held for pace in known)
    return math.ceil(left * mine.rate / sum(pace.rate for pace in known)) - mine.held


def _worth_starting(mine: Pace, others: Sequence[Pace], waiting: int) -> bool:
    """Whether a row that starts here now ends before the others could have done it after all that waits."""
    rate = sum(other.rate for other in others)
    if not rate or not mine.seconds:
        return True
    backlog = waiting + sum(other.unstarted for other in others)
    fastest = min(other.row_seconds for other in others if other.rate)
    return mine.row_seconds <= backlog / rate + fastest


def steal(thief: Pace, others: Sequence[Pace]) -> tuple[str, int] | None:
    """(victim, rows) so that victim and thief would end together; None when nothing is worth taking.

    Before the thief has nothing to do: the victim hears of it some time later, and may start rows until then.
    """
    victims = [other for other in others if other.unstarted]
    if not victims:
        return None
    victim = max(victims, key=lambda other: other.unstarted / (other.rate or 1e-9))
    if victim.rate and thief.seconds and thief.row_seconds > victim.unstarted / victim.rate + victim.row_seconds:
        return None
    if thief.rate and victim.rate:
        ahead = victim.held * thief.rate - thief.held * victim.rate
        count = math.floor(ahead / (thief.rate + victim.rate))
    else:
        count = math.ceil(victim.unstarted / 2) if thief.held < thief.running else 0
    count = min(count, victim.unstarted, max(thief.depth - thief.held, 0))
    return (victim.engine, count) if count > 0 else None

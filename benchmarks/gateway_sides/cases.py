"""The cases of benchmarks/gateway.py, and what is made of a load's answers.

Owns: how long, how many at once, which pace; latencies, rates and costs of one run; what a door adds to the engine's
own. Must not know: doors, processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from benchmarks.gateway_sides.engine import PACED
from benchmarks.gateway_sides.load import PATIENCE_S, Outcome
from benchmarks.report import percentile

T = TypeVar("T")
Figures = dict[str, float]
TEXT = "Tell me something worth knowing about rivers, bridges, markets and the people who meet there. " * 4
QUICK = 0.4
KEEPS_UP = 0.9
"""An open loop is only run at a rate below this part of what the door was seen to do: a queue that grows for as long as
the load lasts has no percentile."""
LATENCIES = ("ttft_p50_ms", "ttft_p99_ms", "total_p50_ms", "total_p99_ms")
SATURATED = "saturated"


@dataclass(frozen=True, slots=True)
class Case:
    """One load. `concurrency` makes a closed loop, `rate_per_s` an open one."""

    name: str
    seconds: float
    direct_seconds: float
    """For the engine alone, which is measured with every group."""
    concurrency: int = 0
    rate_per_s: float = 0.0
    most: int | None = None
    prompt: str = TEXT

    def shorter(self) -> Case:
        """For a quick run."""
        most = None if self.most is None else int(self.most * QUICK)
        return replace(self, seconds=self.seconds * QUICK, direct_seconds=self.direct_seconds * QUICK, most=most)


CASES = {
    case.name: case
    for case in (
        Case("c1", 4.0, 2.0, concurrency=1, most=1500),
        Case("c16", 3.0, 1.0, concurrency=16),
        Case("c64", 3.0, 1.0, concurrency=64),
        Case("open100", 5.0, 2.5, rate_per_s=100),
        Case("open300", 6.0, 3.0, rate_per_s=300),
        Case("paced16", 3.0, 2.0, concurrency=16, prompt=f"{PACED} {TEXT}"),
    )
}
CLOSED = ("c1", "c16", "c64")


def figures(outcome: Outcome) -> Figures:
    """What one load shows. A request that failed counts as the longest that one may take."""
    answers = outcome.answers
    good = sum(answer.ok for answer in answers)
    first = [(a.first_s if a.ok else PATIENCE_S) * 1e3 for a in answers]
    total = [(a.total_s if a.ok else PATIENCE_S) * 1e3 for a in answers]
    beyond = [(a.first_s - a.queue_s if a.ok else PATIENCE_S) * 1e3 for a in answers]
    found = {
        "requests": float(len(answers)),
        "failed": float(len(answers) - good),
        "rps": good / outcome.seconds,
        "ttft_p50_ms": percentile(first, 50),
        "ttft_p99_ms": percentile(first, 99),
        "total_p50_ms": percentile(total, 50),
        "total_p99_ms": percentile(total, 99),
        # Without what the door itself says it waited for a slot.
        "beyond_queue_p50_ms": percentile(beyond, 50),
        "client_cpu_s_per_1000": outcome.client_cpu_s / len(answers) * 1e3,
    }
    if outcome.late_s:
        found["sent_late_p99_ms"] = percentile(outcome.late_s, 99) * 1e3
    return found


def added(side: Mapping[str, float], direct: Mapping[str, float]) -> Figures:
    """What the door adds to the engine's own latencies under the same load."""
    found = {f"added_{name}": side[name] - direct[name] for name in LATENCIES}
    found["added_beyond_queue_p50_ms"] = side["beyond_queue_p50_ms"] - direct["ttft_p50_ms"]
    return found


def cpu_figures(used_s: Mapping[str, float], requests: float) -> dict[str, object]:
    """CPU seconds per 1,000 requests, in all and by role."""
    per_1000 = {role: round(seconds / requests * 1e3, 4) for role, seconds in sorted(used_s.items())}
    return {"cpu_s_per_1000": sum(used_s.values()) / requests * 1e3, "cpu_s_per_1000_by_role": per_1000}


def saturated(closed: Mapping[str, Mapping[str, float]]) -> float | None:
    """Most requests a second in any closed loop; None when there was none with many at once."""
    rates = [figures["rps"] for name, figures in closed.items() if name in ("c16", "c64")]
    return max(rates, default=None)


def keeps_up(case: Case, rates: Sequence[float]) -> bool:
    """Whether a door that was seen to do `rates` can be offered this case's rate."""
    return not case.rate_per_s or not rates or case.rate_per_s <= KEEPS_UP * max(rates)


def rotated(items: Sequence[T], number: int) -> list[T]:
    """The order of round `number`: each goes first in turn, so that a drift of the machine favours nobody."""
    at = number % len(items) if items else 0
    return [*items[at:], *items[:at]]

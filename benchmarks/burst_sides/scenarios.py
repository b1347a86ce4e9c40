"""The simulated scenarios: which traffic on which engine, and how the sides are tuned. Owns: their numbers.

Ray Serve's rule is tuned on the beginning of each trace, with a burst of its own, for its cost: of all settings that
come within two points of the fixed peak's attainment the one with the fewest replica-seconds; if none does, the one
that attains most. The fixed peak is the smallest number that serves 99.5 % in time in every piece that is compared: it
is found in hindsight. Ours is as configured by default.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.burst_sides import metrics
from benchmarks.burst_sides.cluster_model import Cluster, Side
from benchmarks.burst_sides.deciders import Fixed, Ours, Serve
from benchmarks.burst_sides.serve_rule import ServeSettings
from benchmarks.burst_sides.workload import AZURE, BURST_S, SERVEGEN, Load, load
from benchmarks.routing_sides.engine_model import Engine
from cluster.scheduling import ScalingBounds

OURS, SERVE, PEAK = "tribes", "serve", "peak"
GPU = Engine()
SMALL = replace(
    GPU,
    prefill_tokens_per_s=2500.0,
    chunk_tokens=512,
    prompt_s=0.04,
    step_s=0.04,
    decode_s_a_request=0.6e-3,
    slots=16,
)
"""A quarter as fast, with a quarter of the slots: the ServeGen file has short requests."""
ENGINES = {SERVEGEN: SMALL, AZURE: GPU}
START_S = 6.0
"""From order to ready: what a forked start takes, in the order of magnitude."""
BASE_REPLICAS = 2
COUNTED_FROM_S = 120.0
PIECE_S, PIECES = 1200.0, 5
FIRST_SEED = 100
"""The constants of the policy were chosen with bursts at other moments."""
TRACE_S = 3500.0
TUNED_S = 700.0
PEAK_ATTAINS = 0.995
MOST_PEAK = 40
ROOM = 1.5
"""How many replicas those that scale may have, in peaks: to clear what waited takes more than to keep up."""
IDLE_TIMEOUT_S = 60.0
WITHIN_POINTS = 0.02
GRID = {
    "target_ongoing_requests": (0.25, 0.5, 0.75, 1.0),
    "look_back_period_s": (2.0, 10.0, 30.0),
    "downscale_delay_s": (10.0, 30.0),
}
"""Targets in slots of a replica."""
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A trace and its engine."""

    trace: str

    @property
    def engine(self) -> Engine:
        return ENGINES[self.trace]

    def piece(self, data: Path, number: int) -> Load:
        """Part of the trace, with the burst somewhere in its middle third."""
        first_s = number * (TRACE_S - PIECE_S) / (PIECES - 1)
        seed = FIRST_SEED + number
        burst_at_s = random.Random(seed).uniform(PIECE_S / 3, 2 * PIECE_S / 3)
        return load(data, self.trace, first_s, PIECE_S, burst_at_s, seed)

    def tuning(self, data: Path) -> Load:
        return load(data, self.trace, 0.0, TUNED_S, TUNED_S / 2 + BURST_S / 2, 1000)

    def run(self, side: Side, what: Load, first: int, seed: int) -> Figures:
        cluster = Cluster(what, side, self.engine, START_S, first, seed)
        cluster.run()
        return metrics.figures(cluster, COUNTED_FROM_S)


def scenarios() -> list[Scenario]:
    return [Scenario(SERVEGEN), Scenario(AZURE)]


@dataclass(frozen=True, slots=True)
class Tuned:
    """What the other sides are given."""

    peak: int
    most: int
    serve: ServeSettings
    tried: list[dict[str, Any]]


def tune(scenario: Scenario, data: Path) -> Tuned:
    """The sufficient peak, and the best settings of Ray Serve's rule."""
    peak = max(smallest_peak(scenario, scenario.piece(data, number)) for number in range(PIECES))
    most = math.ceil(ROOM * peak)
    what = scenario.tuning(data)
    attained = scenario.run(Fixed(peak), what, peak, 0)["attainment"]
    tried = []
    for settings in grid(scenario.engine.slots):
        got = scenario.run(Serve(settings, 0, most), what, BASE_REPLICAS, 0)
        tried.append((settings, got["attainment"], got["replica_seconds"]))
    good = [one for one in tried if one[1] >= attained - WITHIN_POINTS]
    best = min(good, key=lambda one: one[2]) if good else max(tried, key=lambda one: (one[1], -one[2]))
    shown = [{"settings": settings_of(s), "attainment": round(a, 4), "replica_seconds": round(c)} for s, a, c in tried]
    return Tuned(peak, most, best[0], shown)


def smallest_peak(scenario: Scenario, what: Load) -> int:
    """The smallest number of replicas that serves nearly all in time."""
    for peak in range(BASE_REPLICAS, MOST_PEAK + 1):
        if scenario.run(Fixed(peak), what, peak, 0)["attainment"] >= PEAK_ATTAINS:
            return peak
    raise RuntimeError(f"{MOST_PEAK} replicas do not serve {PEAK_ATTAINS:.1%} of {scenario.trace} in time")


def grid(slots: int) -> Iterator[ServeSettings]:
    for share, look_back_s, delay_s in itertools.product(*GRID.values()):
        yield ServeSettings(share * slots, look_back_s, delay_s)


def settings_of(settings: ServeSettings) -> dict[str, Any]:
    return settings.config(0, 1).model_dump(
        mode="json",
        include={
            "target_ongoing_requests",
            "look_back_period_s",
            "upscale_delay_s",
            "downscale_delay_s",
            "metrics_interval_s",
        },
    )


def bounds(scenario: Scenario, most: int) -> ScalingBounds:
    return ScalingBounds(0, most, scenario.engine.slots, metrics.WAIT_TARGET_S, IDLE_TIMEOUT_S)


def run(scenario: Scenario, tuned: Tuned, data: Path, number: int) -> Iterator[tuple[str, Figures]]:
    """(side, figures) for each side on the same piece of the trace."""
    what = scenario.piece(data, number)
    sides: dict[str, tuple[Side, int]] = {
        OURS: (Ours(bounds(scenario, tuned.most)), BASE_REPLICAS),
        SERVE: (Serve(tuned.serve, 0, tuned.most), BASE_REPLICAS),
        PEAK: (Fixed(tuned.peak), tuned.peak),
    }
    for name, (side, first) in sides.items():
        yield name, scenario.run(side, what, first, number)

"""The simulated scenarios: which load, which sides. Owns: their numbers. Must not know: how figures are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.routing_sides import metrics
from benchmarks.routing_sides.engine_model import Engine
from benchmarks.routing_sides.ours import Ours
from benchmarks.routing_sides.policies import AtOnce, CacheAware, LeastLoaded, RandomChoice, RoundRobin, SessionOnly
from benchmarks.routing_sides.simulation import Router, Simulation
from benchmarks.routing_sides.workload import Load, chats, trace

OURS, OURS_PREFIX, OURS_UNNAMED = "tribes", "tribes_prefix", "tribes_unnamed"
"""As by default; with prefixes; with prefixes, but for clients that name no session."""
CACHE_AWARE = {"cache_aware": (0.3, 64, 1.5), "cache_aware_library": (0.5, 32, 1.1)}
"""Threshold, absolute and relative difference: defaults of the command line, and of the library."""
REPLICAS = (2, 4)
ENGINE = Engine()
TRACE_ENGINE = replace(ENGINE, cache_tokens=4_194_304)
"""Prompts of 12,000 tokens on average: with the cache's second tier in host memory."""
CHAT_S, USERS_PER_REPLICA = 300.0, 60
CHAT_RATES = {"moderate": 3.0, "high": 6.0, "saturated": 6.0}
"""Requests a second and replica. Saturated: with so few slots that somebody always waits."""
FEW_SLOTS = 12
TRACE_FIRST, TRACE_REQUESTS, TRACE_TOKENS_PER_S = 6000, 5000, 41_000.0
FIRST_SEED = 5
"""The constants of routing were chosen on seeds 0 to 4 and the first 6,000 requests; these are others."""
TRACE_LOADS = {"moderate": 0.5, "high": 0.8}
"""Prompt tokens that come, over those that all replicas could prefill if nothing were cached."""

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load on so many replicas."""

    workload: str
    load: str
    replicas: int

    @property
    def engine(self) -> Engine:
        if self.workload == "mooncake":
            return TRACE_ENGINE
        return replace(ENGINE, slots=FEW_SLOTS) if self.load == "saturated" else ENGINE

    def requests(self, data: Path, seed: int) -> Load:
        if self.workload != "mooncake":
            rate = CHAT_RATES[self.load] * self.replicas
            return chats(data, USERS_PER_REPLICA * self.replicas, rate, CHAT_S, FIRST_SEED + seed)
        wanted = TRACE_LOADS[self.load] * self.replicas * self.engine.prefill_tokens_per_s
        return trace(data, TRACE_REQUESTS, TRACE_TOKENS_PER_S / wanted, seed, TRACE_FIRST)


def scenarios() -> list[Scenario]:
    loads = [("chat", "moderate"), ("chat", "high"), ("mooncake", "moderate"), ("mooncake", "high")]
    found = [Scenario(workload, load, replicas) for workload, load in loads for replicas in REPLICAS]
    return [*found, Scenario("chat_saturated", "saturated", 4)]


def sides(replicas: int, slots: int, seed: int) -> dict[str, Callable[[], Router]]:
    """Every router by name."""
    published = {
        name: lambda rule=rule: AtOnce(CacheAware(replicas, *rule), replicas)  # type: ignore[misc]
        for name, rule in CACHE_AWARE.items()
    }
    return {
        "random": lambda: AtOnce(RandomChoice(replicas, seed), replicas),
        "round_robin": lambda: AtOnce(RoundRobin(replicas), replicas),
        "least_loaded": lambda: AtOnce(LeastLoaded(), replicas),
        **published,
        "session_only": lambda: SessionOnly(replicas, slots),
        OURS: lambda: Ours(replicas, slots),
        OURS_PREFIX: lambda: Ours(replicas, slots, prefix=True),
        OURS_UNNAMED: lambda: Ours(replicas, slots, prefix=True, session=False),
    }


def run(scenario: Scenario, data: Path, seed: int) -> Iterator[tuple[str, Figures]]:
    """(side, figures) for each side, all with the same load."""
    load = scenario.requests(data, seed)
    for name, make in sides(scenario.replicas, scenario.engine.slots, seed).items():
        simulation = Simulation(load, make(), scenario.engine, scenario.replicas)
        served = simulation.run()
        yield name, metrics.figures(load, served, scenario.engine, simulation.replicas)

"""What a simulation says, as plain data. Owns: the result's shape. Must not know: how it came about or is shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """Of seconds."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class GroupResult:
    """Requests of one class, or of one tenant in one class. What was refused counts as a miss."""

    name: str
    requests: int
    finished: int
    refused: dict[str, int]
    """By the code of the refusal."""
    good: int
    """Finished within the SLO."""
    attainment: float
    goodput_per_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    wait: Spread | None
    ttft: Spread | None
    tpot: Spread | None
    e2e: Spread | None

    @property
    def hit_rate(self) -> float:
        """Cached prompt tokens over prompt tokens."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@dataclass(frozen=True, slots=True)
class Fairness:
    """Among the tenants of one class; formulas in `fairness`."""

    jain: float
    difference_max: float
    difference_mean: float


@dataclass(frozen=True, slots=True)
class DeploymentResult:
    """Replicas, their work and their price."""

    name: str
    replica_seconds: float
    usd: float
    utilisation: float
    """Time in which engines computed, over the time of ready replicas."""
    most_replicas: int
    starts: dict[str, int]
    """By the rung of the cold-start ladder."""
    failures: int
    preemptions: int
    timeline: tuple[tuple[float, int, int], ...]
    """(when, ready, starting), at each change."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Sums of equal buckets of time, for plots."""

    width_s: float
    arrived: tuple[int, ...]
    good: tuple[int, ...]
    """By when they came."""
    output_tokens: tuple[int, ...]
    """By when they ended."""


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """One simulation, all of it."""

    name: str
    seconds: float
    """Simulated, until the last request ended."""
    requests: int
    engines: dict[str, dict[str, float]]
    """By deployment: the step model and the limits that were simulated."""
    classes: dict[str, GroupResult]
    tenants: dict[str, dict[str, GroupResult]]
    """By class, then tenant."""
    fairness: dict[str, Fairness]
    """By class, where it has several tenants."""
    deployments: dict[str, DeploymentResult]
    rates: Rates
    usd: float
    usd_per_mtok: float | None
    """Dollars per million tokens, prompts and outputs together; None where nothing was done."""

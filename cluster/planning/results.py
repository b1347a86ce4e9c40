"""Role: what planning returns. Owns: the types, which become JSON as they are. Must not know: how they are found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cluster.planning.load import Bucket, Point, Replica, Targets
from cluster.planning.melange import Fleet
from cluster.planning.shape import Shape
from cluster.vocabulary import RequestClass

Basis = Literal["calibrated", "kernels", "roofline"]
"""Where the times come from: measured here, aiconfigurator's kernel measurements, or the built-in formulas."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to serve a class. `verdict` says why it is not the one chosen; None for that one."""

    shape: Shape
    basis: Basis
    replica: Replica | None = None
    """None where the model does not even fit."""
    requests_per_s: float = 0.0
    """At most, one replica."""
    replicas: int = 0
    """At the peak."""
    floor: int = 0
    """Always on."""
    usd_per_hour: float = 0.0
    """On average, where replicas come and go."""
    usd_per_mtok: float = 0.0
    tokens_per_s: float = 0.0
    """Prompt and answer tokens of all replicas at the peak."""
    point: Point | None = None
    """One replica at the peak; None for work without targets, whose batch is always full."""
    utilisation: float = 0.0
    verdict: str | None = None

    @property
    def feasible(self) -> bool:
        return self.replicas > 0

    @property
    def gpus(self) -> int:
        return self.replicas * self.shape.gpus


@dataclass(frozen=True, slots=True)
class HostedComparison:
    """The chosen candidate against an API of somebody else."""

    name: str
    usd_per_hour: float
    """For the same requests."""
    break_even_utilisation: float
    """Share of what the replicas could do at which both cost the same; above 1 the API is always cheaper."""
    cheaper: Literal["self", "hosted"]


@dataclass(frozen=True, slots=True)
class MixedFleet:
    """The cheapest mix of accelerators, each request size on the type that suits it."""

    fleet: Fleet
    shapes: dict[str, Shape]
    """By accelerator."""
    usd_per_hour: float
    single_usd_per_hour: float
    """The cheapest single type in the same terms."""


@dataclass(frozen=True, slots=True)
class ClassPlan:
    """A class of requests."""

    request_class: RequestClass
    requests_per_s: float
    peak_requests_per_s: float
    buckets: tuple[Bucket, ...]
    targets: Targets
    chosen: Candidate | None
    alternatives: tuple[Candidate, ...]
    """All others, those that can be had first, by price."""
    mixed: MixedFleet | None = None
    hosted: tuple[HostedComparison, ...] = ()
    counsel: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """A model on hardware, class by class."""

    model: str
    parameters: int
    active_parameters: int
    classes: tuple[ClassPlan, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def usd_per_hour(self) -> float:
        return sum(item.chosen.usd_per_hour for item in self.classes if item.chosen)

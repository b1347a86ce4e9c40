"""What gateways, replicas and the dispatcher tell each other: small pickled values, never prompts or tokens.

`Hello`, `Exchange` and `Answers` pack themselves (`serve_apps/packing.py`): they carry the tickets and leases of a
whole round trip, and Ray's own pickler costs many times as much for each object in them.

Owns: the message types. Must not know: who sends them, or Ray.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.scheduling import Lease, Prepaid, RateLimitState, Refusal, Ticket, TokenUsage
from cluster.vocabulary import RequestClass
from serve_apps.packing import Packed

ReplicaState = Literal["starting", "ready", "draining"]


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """A replica's word about itself, once a second. Reports that stop coming mean that it is gone."""

    replica_id: str
    deployment: str
    state: ReplicaState
    started_at_s: float
    pid: int = 0
    """Root of the engine's process tree on its node."""
    base_url: str = ""
    api_key: str = field(default="", repr=False)
    cold_start_s: float | None = None
    rung: str = "cold"
    """Of the cold-start ladder: how it came."""
    kv_usage: float | None = None


@dataclass(frozen=True, slots=True)
class ReplicaOrder:
    """The dispatcher's answer to a report: requests still leased on the replica."""

    running: int


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease and the engine server to use it on."""

    lease: Lease
    deployment: str
    base_url: str
    api_key: str = field(repr=False)
    rate_limits: RateLimitState | None = None
    """Where the tenant stands after this request; None when it has no rate limits."""


@dataclass(frozen=True, slots=True)
class PrepaidGrant:
    """A lease without a request yet: the gateway that holds it may use it for the next one, and says so afterwards."""

    lease_id: str
    replica_id: str
    serves: tuple[RequestClass, ...]
    deployment: str
    base_url: str
    api_key: str = field(repr=False)

    def used_for(self, ticket: Ticket, now_s: float) -> Grant:
        lease = Lease(self.lease_id, ticket, self.replica_id, now_s)
        return Grant(lease, self.deployment, self.base_url, self.api_key)


@dataclass(frozen=True, slots=True)
class Memory:
    """What gateways keep for the dispatcher, which has no disk: brought back to its successor with `hello`."""

    life: str
    """The life of the dispatcher that said it: nothing is learned from what one has said oneself."""
    gateways: frozenset[str]
    """Who else is there: their running leases take slots that the successor does not know yet."""
    counters: dict[str, Any]
    """`RequestQueue.counters_snapshot()`."""
    config: dict[str, Any] | None = field(default=None, repr=False)
    """The latest configuration: Ray starts the successor with the one that the actor was created with."""
    configured_at_s: float = 0.0
    """Wall clock, rising with each configuration; 0.0 for the first one."""


@dataclass(slots=True)
class Hello(Packed):
    """Everything a gateway holds. What it does not list has ended."""

    gateway_id: str
    waiting: list[Ticket] = field(default_factory=list)
    running: list[Lease] = field(default_factory=list)
    prepaid: list[Prepaid] = field(default_factory=list)
    """Not in use yet; one that is in use is among `running`."""
    memory: Memory | None = None
    produced: dict[str, int] = field(default_factory=dict)
    """Of `running`: lease id -> output tokens so far."""


@dataclass(slots=True)
class Exchange(Packed):
    """Everything a gateway has to say since its last call."""

    gateway_id: str
    submits: list[Ticket] = field(default_factory=list)
    cancels: list[str] = field(default_factory=list)
    releases: list[tuple[str, TokenUsage | None]] = field(default_factory=list)
    progress: dict[str, int] = field(default_factory=dict)
    """Lease id -> output tokens so far."""
    unreachable: list[str] = field(default_factory=list)
    """Replicas that took no connection."""
    used: list[tuple[str, Ticket, float]] = field(default_factory=list)
    """Prepaid leases that run now: lease id, for whom, since when. One may be in `releases` too."""
    returned: list[str] = field(default_factory=list)
    """Prepaid leases that were recalled before they were used."""

    def __bool__(self) -> bool:
        return bool(
            self.submits
            or self.cancels
            or self.releases
            or self.progress
            or self.unreachable
            or self.used
            or self.returned
        )


@dataclass(slots=True)
class Answers(Packed):
    """What the dispatcher has for one gateway."""

    grants: list[Grant] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Leases whose replica is gone."""
    prepaid: list[PrepaidGrant] = field(default_factory=list)
    recall: list[str] = field(default_factory=list)
    """Prepaid leases to return if they are not in use: somebody waits, or their replica takes no more."""
    limited: frozenset[str] | None = None
    """Tenants with any limit, when this has changed: prepaid leases are not for them."""
    memory: Memory | None = None
    """To be kept for the dispatcher's successor, when it has changed."""
    resync: bool = False
    """The dispatcher does not know this gateway (it was restarted): say hello with all that waits and runs."""

    def __bool__(self) -> bool:
        return bool(
            self.grants
            or self.refusals
            or self.lost
            or self.prepaid
            or self.recall
            or self.limited is not None
            or self.memory is not None
            or self.resync
        )

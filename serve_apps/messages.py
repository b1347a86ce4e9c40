"""What gateways, replicas and the dispatcher tell each other: small pickled values, never prompts or tokens.

Owns: the message types. Must not know: who sends them, or Ray.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cluster.scheduling import Lease, Refusal, Ticket, TokenUsage

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


@dataclass(slots=True)
class Exchange:
    """Everything a gateway has to say since its last call."""

    gateway_id: str
    submits: list[Ticket] = field(default_factory=list)
    cancels: list[str] = field(default_factory=list)
    releases: list[tuple[str, TokenUsage | None]] = field(default_factory=list)
    progress: dict[str, int] = field(default_factory=dict)
    """Lease id -> output tokens so far."""
    unreachable: list[str] = field(default_factory=list)
    """Replicas that took no connection."""

    def __bool__(self) -> bool:
        return bool(self.submits or self.cancels or self.releases or self.progress or self.unreachable)


@dataclass(slots=True)
class Answers:
    """What the dispatcher has for one gateway."""

    grants: list[Grant] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Leases whose replica is gone."""
    resync: bool = False
    """The dispatcher does not know this gateway (it was restarted): say hello with all that waits and runs."""

    def __bool__(self) -> bool:
        return bool(self.grants or self.refusals or self.lost or self.resync)

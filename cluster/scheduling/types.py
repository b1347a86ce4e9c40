"""The nouns of the shared queue, as plain data.

Owns: what a waiting request (ticket), a right to run it (lease), a refusal and a usage report are.
Must not know: Ray, engines, HTTP, the configuration file. Everything here pickles and compares by value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cluster.vocabulary import RequestClass


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request that waits for a lease. It carries sizes and names only, never the prompt."""

    ticket_id: str
    owner: str
    """The gateway that holds the client's connection; its death ends the ticket."""
    tenant: str
    request_class: RequestClass
    prompt_tokens: int
    """Estimated uncached input tokens."""
    max_output_tokens: int
    arrived_at_s: float
    session: str | None = None
    expires_at_s: float | None = None
    avoid: tuple[str, ...] = ()
    """Replicas that failed this request before: not taken while another one serves its class, busy or not. Until that
    one has a slot the ticket lets others go first."""
    key: str = ""
    """API key id: a level of fair sharing below the tenant."""
    program: str | None = None
    """Named by the client: a level of fair sharing below the key."""
    deadline_at_s: float | None = None
    """Wall clock. Inside one flow the earliest deadline goes first, then the earliest arrival."""
    prefix: tuple[int, ...] = ()
    """Chained 64-bit hashes of the prompt's leading blocks; empty where prefixes are not looked at."""
    charged_tokens: int | None = None
    """What the tenant's token limit counts until the real usage is known; None = prompt + max output."""

    @property
    def limit_tokens(self) -> int:
        if self.charged_tokens is not None:
            return self.charged_tokens
        return self.prompt_tokens + self.max_output_tokens


@dataclass(slots=True, unsafe_hash=True)
class Lease:
    """The right to run one request on one replica until it is released. Never changed; not frozen, because that would
    make it four times as slow to build, and one is built in every decision."""

    lease_id: str
    ticket: Ticket
    replica_id: str
    granted_at_s: float

    @property
    def waited_s(self) -> float:
        return max(0.0, self.granted_at_s - self.ticket.arrived_at_s)


@dataclass(frozen=True, slots=True)
class Prepaid:
    """A slot on a replica that a gateway holds before it has a request for it. `serves` says for which classes."""

    lease_id: str
    replica_id: str
    serves: tuple[RequestClass, ...]
    owner: str


@dataclass(frozen=True, slots=True)
class RateLimitState:
    """A tenant's rate limits as HTTP headers tell them: the limit, what is left of it, and when all of it is back.

    None where the tenant has no such limit."""

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests_s: float | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens_s: float | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request will not run, in HTTP's terms. `retry_after_s` is None where trying again cannot help."""

    ticket_id: str
    status: int
    code: str
    message: str
    retry_after_s: float | None = None
    rate_limits: RateLimitState | None = None


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of one request as the engine reports them; `cached_tokens` is part of `prompt_tokens`."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    first_token_s: float | None = field(default=None, compare=False)
    """Seconds from the lease to the first token, where somebody saw it: a replica's prefill rate is measured by it."""

    @property
    def uncached_tokens(self) -> int:
        return max(0, self.prompt_tokens - self.cached_tokens)


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What one tenant may use at most; None means unlimited."""

    max_concurrent: int | None = None
    max_queued: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    usd_per_day: float | None = None


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """A tenant's share (`weight`, relative to the others') and limits."""

    weight: float = 1.0
    limits: TenantLimits = TenantLimits()


@dataclass(frozen=True, slots=True)
class ClassPolicy:
    """Bounds of one request class: waiting requests, seconds of waiting, the share of service it keeps under pressure
    from more important classes (`floor`, 0..1), and the age at which its oldest request makes it go first."""

    max_queued: int
    max_wait_s: float
    floor: float = 0.0
    max_age_s: float | None = None


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """How far a session's replica may be busier than others before the session leaves it; see `placement`."""

    stay_s: float = 0.05
    """Time to the first token that a session pays for staying, beyond what the cached prompt saves."""
    load_factor: float = 1.25
    """Above 1: an unseen session goes to its replica on the ring up to this multiple of the mean load."""
    miss_weight: float = 2.0
    """What a prompt token to be prefilled again counts: it delays its own request, and those that come behind it."""
    running_tokens: float = 32.0
    """What a running request counts beside its prefill: prompt tokens for which it slows the engine down."""


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """What holds for all classes of one queue."""

    max_queued: int | None = None
    """Requests that may wait, all classes together; None = only the classes' own bounds hold."""
    raised_share: float = 0.2
    """Most of the service that aged and urgent work may take from more important classes, floors not counted."""
    deadline_margin_s: float = 60.0
    """A class is urgent when a deadline in it is nearer than this, or than twice the class's usual run time."""
    fairness: Literal["vtc", "dlpm"] = "vtc"
    locality_quantum_tokens: float = 4096.0
    """dlpm only: service by which a tenant may run ahead of the others for the sake of a cached prefix."""
    routing: RoutingPolicy = RoutingPolicy()


@dataclass(slots=True)
class Replica:
    """A routable engine replica: `serves` lists its request classes, the first being its own."""

    replica_id: str
    deployment: str
    serves: tuple[RequestClass, ...]
    max_running: int
    running: int = 0
    draining: bool = False

    @property
    def free(self) -> int:
        return 0 if self.draining else max(0, self.max_running - self.running)

    @property
    def load(self) -> float:
        return self.running / self.max_running

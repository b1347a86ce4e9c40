"""A request of a simulation: what the client knows in hindsight, and what became of it.

One object per request and no others: a simulation of a thousand replicas has more than a million of them.
Owns: its fields. Must not know: engines, queues.
"""

from __future__ import annotations

from cluster.vocabulary import RequestClass

UNSET = -1.0
"""A moment that has not come."""


class Request:
    """Times in seconds since the simulation began; `UNSET` while they have not come."""

    __slots__ = (
        "arrived_s",
        "attempts",
        "blocks",
        "cached_tokens",
        "finished_s",
        "first_token_s",
        "given_s",
        "number",
        "order",
        "output_tokens",
        "preemptions",
        "priority",
        "produced",
        "prompt_tokens",
        "refusal",
        "replica",
        "request_class",
        "session",
        "tenant",
    )

    def __init__(
        self,
        number: int,
        arrived_s: float,
        prompt_tokens: int,
        output_tokens: int,
        tenant: str = "default",
        request_class: RequestClass = RequestClass.ONLINE,
        blocks: tuple[int, ...] = (),
        session: str | None = None,
        priority: int = 0,
    ) -> None:
        self.number = number
        self.arrived_s = arrived_s
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.tenant = tenant
        self.request_class = request_class
        self.blocks = blocks
        """Hashes of the prompt's leading whole blocks, each with all before it."""
        self.session = session
        self.priority = priority
        """The engine's own: smaller goes earlier."""
        self.order = 0
        """Of arrival at the replica."""
        self.replica = -1
        self.produced = 0
        self.cached_tokens = 0
        self.preemptions = 0
        self.attempts = 1
        self.given_s = UNSET
        """When it was given to a replica: the first time."""
        self.first_token_s = UNSET
        self.finished_s = UNSET
        self.refusal: str | None = None

    @property
    def final_kv(self) -> int:
        """Tokens it holds when its last token is produced, which itself is never stored."""
        return self.prompt_tokens + self.output_tokens - 1

    @property
    def finished(self) -> bool:
        return self.finished_s >= 0

    @property
    def wait_s(self) -> float:
        return self.given_s - self.arrived_s

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.arrived_s

    @property
    def e2e_s(self) -> float:
        return self.finished_s - self.arrived_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first; None for an answer of one token."""
        if self.output_tokens < 2:
            return None
        return (self.finished_s - self.first_token_s) / (self.output_tokens - 1)

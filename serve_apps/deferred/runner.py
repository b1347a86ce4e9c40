"""One request of accepted work, from the queue to an answer that is final. Owns: when it is sent again.

Must not know: batches, rows. A refusal (429, 503) says when to come back, and is obeyed until the caller gives up at
its deadline. A replica that failed (other 5xx) is tried again a few times only: the request may be what kills it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cluster.scheduling import TokenUsage
from cluster.state import UsageRecord
from cluster.vocabulary import RequestClass
from serve_apps.deferred.slots import Slots
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.errors import ApiError
from serve_apps.gateway.headless import Outcome
from serve_apps.leases import LeaseClient

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0
"""However long a refusal says: budgets are raised and replicas are added meanwhile."""
_REFUSED = (429, 503)


@dataclass(frozen=True, slots=True)
class Request:
    """What is run. `id` is the ledger's key: the same in every run of the same work."""

    id: str
    path: str
    model: str
    body: bytes
    caller: Caller
    request_class: RequestClass
    deadline_at_s: float | None
    """Orders the tenant's waiting work. None: as it arrived."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How it ended, and what to bill: nothing, where no engine answered."""

    status: int
    body: bytes
    usage: TokenUsage
    records: tuple[UsageRecord, ...] = ()


class Headless(Protocol):
    """What runs one request through the shared queue (serve_apps/gateway/headless.py)."""

    async def run(
        self,
        path: str,
        body: bytes,
        caller: Caller,
        leases: LeaseClient,
        *,
        request_class: RequestClass,
        request_id: str,
        deadline_at_s: float | None,
    ) -> Outcome: ...


class Runner:
    """Runs requests of all models. `connect` is called with where finished requests are to be reported."""

    def __init__(
        self,
        connect: Callable[[Callable[[UsageRecord], None]], Headless],
        leases: Mapping[str, LeaseClient],
        max_attempts: int,
    ) -> None:
        self._records: dict[str, UsageRecord] = {}
        self._headless = connect(self._finished)
        self._leases = leases
        self._max_attempts = max_attempts

    async def run(self, request: Request, slots: Slots | None = None) -> Answer:
        """The final answer. It may never come: the caller bounds the wait by its own deadline.

        Of `slots` it has a place while it is in the queue or runs, and none while it waits to come back: a tenant whose
        budget is used up is refused until midnight, and must not hold until then what others could use.
        """
        if request.model not in self._leases:
            message = f"model {request.model!r} is not served any more"
            return Answer(404, ApiError(404, "model_not_found", message, param="model").body(), TokenUsage())
        failures = 0
        wait_s = FIRST_WAIT_S
        try:
            while True:
                outcome = await self._once(request, slots)
                if not outcome.worth_another_run:
                    break
                if outcome.status not in _REFUSED:
                    failures += 1
                    if failures >= self._max_attempts:
                        break
                asked_s = min(outcome.retry_after_s or 0.0, LONGEST_WAIT_S)
                await asyncio.sleep(max(asked_s, wait_s) * random.uniform(1.0, 1.25))
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        finally:
            record = self._records.pop(request.id, None)
        billed = (record,) if record is not None and record.deployment else ()
        return Answer(outcome.status, outcome.body, outcome.usage or TokenUsage(), billed)

    async def _once(self, request: Request, slots: Slots | None) -> Outcome:
        async with slots.place(request.model, request.caller.tenant) if slots else contextlib.nullcontext():
            return await self._headless.run(
                request.path,
                request.body,
                request.caller,
                self._leases[request.model],
                request_class=request.request_class,
                request_id=request.id,
                deadline_at_s=request.deadline_at_s,
            )

    def _finished(self, record: UsageRecord) -> None:
        # Kept until the result is written: bill and result are one transaction.
        self._records[record.request_id] = record

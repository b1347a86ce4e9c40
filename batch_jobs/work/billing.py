"""What a job used, for the cluster's usage ledger: a record for each committed part, and the lives of its engines.

Role: write them behind the job's back, and say at the end whether all is written. Owns: the ids of records, which make
a repeated write harmless. Must not know: Ray, rows.

A part is booked after it is committed. What a killed run did not get to book, the next one does, which reads the parts
anyway. Only a part's own run knows its pool: one that is booked later goes to the first pool of the job.
Without a tenant only the lives are written, for a job whose tokens another bills from its output: the Batch API's
worker, which knows no pools and names the first. So all the job's engines are lives of that one deployment.
The state store's packages are imported where somebody is billed: they take half a second.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from batch_jobs.errors import JobRefused
from batch_jobs.output.parts import Totals
from batch_jobs.plan import Plan
from batch_jobs.request import JobRequest
from batch_jobs.storage import Storage
from cluster.config.base import NAME_PATTERN, PATTERN_CURES
from cluster.vocabulary import RequestClass

if TYPE_CHECKING:
    from cluster.state import Store, UsageRecord

PAUSE_S = 2.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Billing:
    """Plain data: whose the job is, and where that is written down."""

    state_url: str
    tenant: str | None
    """None: no usage is written, only the lives of engines."""
    model: str
    output: str
    """The output's location without secrets. It is part of every record's id, and must be the same in every run."""
    run_id: str
    usd_per_hour: dict[str, float]
    """Of an engine, by pool."""

    def deployment_of(self, pool: str) -> str:
        """Whose users pay for an engine of this pool."""
        return pool if self.tenant is not None else next(iter(self.usd_per_hour))


def billing_of(request: JobRequest, plan: Plan, storage: Storage, run_id: str) -> Billing | None:
    """None where nothing is written. Raises JobRefused for what is no tenant's name."""
    tenant = request.tenant
    if tenant is None and not request.book_lives:
        return None
    if tenant is not None and tenant not in plan.config.tenants and not re.match(NAME_PATTERN, tenant):
        raise JobRefused(f"--tenant {tenant!r}: {PATTERN_CURES[NAME_PATTERN]}")
    return Billing(plan.config.state.url, tenant, plan.model, storage.shown, run_id, plan.prices)


class Span(NamedTuple):
    """The life of an engine so far."""

    engine: str
    pool: str
    born_s: float
    end_s: float


class Bill:
    """What is booked and not written yet. `write` is called once at a time."""

    def __init__(self, billing: Billing) -> None:
        self._billing = billing
        self._records: list[UsageRecord] = []
        self._store: Store | None = None
        self._writing = asyncio.Lock()

    def book(self, part: str, totals: Totals, pool: str | None = None) -> None:
        billing = self._billing
        if billing.tenant is None:
            return
        from cluster.state import UsageRecord

        record = UsageRecord(
            request_id="job-" + hashlib.sha256(f"{billing.output}\n{part}".encode()).hexdigest()[:32],
            tenant=billing.tenant,
            key_id="",
            model=billing.model,
            deployment=pool or next(iter(billing.usd_per_hour)),
            request_class=RequestClass.OFFLINE.value,
            prompt_tokens=totals.prompt_tokens,
            cached_tokens=totals.cached_tokens,
            output_tokens=totals.output_tokens,
            queue_wait_s=0.0,
            ttft_s=None,
            duration_s=0.0,
            status=200,
            finished_at_s=time.time(),
            requests=totals.rows,
        )
        self._records.append(record)

    def write(self, spans: Sequence[Span] = ()) -> None:
        """Blocks. Raises SQLAlchemyError, and keeps what was booked."""
        from cluster.state import Store

        billing = self._billing
        if self._store is None:
            store = Store(billing.state_url)
            store.create()
            if billing.tenant is not None:
                store.add_tenants({billing.tenant: {}})
            self._store = store
        batch = list(self._records)
        self._store.add_usage(batch)
        del self._records[: len(batch)]  # meanwhile more may have come, at the end
        for span in spans:
            name, price = f"{span.pool}/{billing.run_id}-{span.engine}", billing.usd_per_hour[span.pool]
            deployment = billing.deployment_of(span.pool)
            self._store.touch_replica(name, billing.model, deployment, price, span.born_s, span.end_s)

    async def settle(self, spans: Sequence[Span], attempts: int) -> str | None:
        """Write now; what went wrong at the last attempt, or None."""
        from sqlalchemy.exc import SQLAlchemyError

        from cluster.state import StoreVersionError

        problem = None
        async with self._writing:
            for attempt in range(attempts):
                if attempt:
                    await asyncio.sleep(PAUSE_S)
                try:
                    await asyncio.to_thread(self.write, spans)
                    return None
                except (SQLAlchemyError, StoreVersionError) as error:
                    problem = str(error.__cause__ or error)
                    log.warning("usage was not written (%s)", problem)
        return problem

    def write_once(self) -> None:
        """All of it before a run, with what goes wrong as a refusal."""
        from sqlalchemy.exc import SQLAlchemyError

        from cluster.state import StoreVersionError

        try:
            self.write()
        except (SQLAlchemyError, StoreVersionError) as error:
            raise JobRefused(f"--tenant: the state store cannot be used ({error}). Check state.url.") from error
        finally:
            if self._store is not None:
                self._store.close()

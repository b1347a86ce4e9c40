"""From a request and a plan to the plain data that the actors of a run start from.

Role: put settings together. Owns: nothing. Must not know: what actors do with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batch_jobs.input.spec import JobSpec
from batch_jobs.output.encoding import output_type
from batch_jobs.output.part_buffer import PartSettings
from batch_jobs.plan import Plan
from batch_jobs.request import JobRequest
from batch_jobs.storage import Storage
from batch_jobs.work.billing import billing_of
from batch_jobs.work.engine_actor import ActorSettings
from batch_jobs.work.engine_life import Patience
from batch_jobs.work.ledger_actor import LedgerSettings

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class RunSettings:
    """What the ledger and the engines of each pool get."""

    ledger: LedgerSettings
    actors: dict[str, ActorSettings]


def run_settings(
    request: JobRequest, plan: Plan, spec: JobSpec, storage: Storage, run_id: str, part_format: str, schema: pa.Schema
) -> RunSettings:
    offline = plan.config.offline
    several = len(spec.prompts) > 1 or "prompts" in schema.names or int(spec.params.get("n") or 1) > 1
    parts = PartSettings(
        output=storage.location,
        run_id=run_id,
        format=part_format,
        schema=schema,
        part_rows=offline.part_rows,
        part_seconds=offline.part_seconds,
        output_type=output_type(spec.task, several),
    )
    ledger = LedgerSettings(
        output=storage.location,
        run_id=run_id,
        model=plan.model,
        pools=tuple(pool.name for pool in plan.pools),
        max_engines=plan.max_engines,
        window_rows=offline.window_rows,
        window_bytes=offline.window_mib << 20,
        ordered=request.ordered,
        dedupe=request.dedupe,
        patience=Patience(max(pool.start_timeout_s for pool in plan.pools), offline.stall_timeout_s),
        billing=billing_of(request, plan, storage, run_id),
    )
    actors = {
        pool.name: ActorSettings(
            pool=pool.name,
            engine_class=request.engine_class,
            engine=pool.engine_settings(),
            spec=spec,
            parts=parts,
            max_in_flight=offline.max_in_flight,
        )
        for pool in plan.pools
    }
    return RunSettings(ledger, actors)

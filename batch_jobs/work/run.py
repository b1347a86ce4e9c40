"""One run on Ray: join or start a cluster, feed the rows in, keep the engines, watch.

Role: everything of a job that needs Ray, put together. Owns: the driver's loop.
Must not know: the command line, the output's layout.

The main thread watches and stays free for signals; rows are fed in by a thread of their own (source.py).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from batch_jobs.errors import JobFailed
from batch_jobs.input.chunks import Chunks, make_blocks
from batch_jobs.input.spec import JobSpec
from batch_jobs.plan import Plan
from batch_jobs.reporting.stats import Progress
from batch_jobs.work.fleet import Fleet, cluster_nodes, fits_a_node, seats_per_pool
from batch_jobs.work.ledger_actor import start_ledger
from batch_jobs.work.settings import RunSettings
from batch_jobs.work.source import Source

if TYPE_CHECKING:
    from ray.actor import ActorHandle

POLL_S = 1.0
CLOSE_GRACE_S = 5.0
STOP_GRACE_S = float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "3")) - 1.0
"""`ray job stop` kills that long after its SIGTERM."""

QUIET_RAY = {
    "RAY_worker_niceness": "0",  # else engines lag behind whatever else the machine does
    # Nobody looks at a cluster that lives and dies with one job, and on a small machine what it reports costs time.
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "5000",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_num_workers_soft_limit": "0",  # idle worker processes end, instead of waiting for tasks that never come
}

log = logging.getLogger(__name__)


def connect(plan: Plan, engine_logs: bool) -> None:
    """Join the cluster of the job, or start a local one. `engine_logs`: show what the actors print.

    `ray.address: local` always starts one; without an address it is the cluster that Ray itself finds, if any.
    """
    # Read when Ray is imported. Else a thread that outlives this run would quietly join whatever cluster it finds.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    import ray

    if ray.is_initialized():
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    _init(plan, engine_logs)
    for number, handler in handlers.items():  # ray.init sets its own, which end the process at once
        signal.signal(number, handler)


def _init(plan: Plan, engine_logs: bool) -> None:
    import ray

    address = plan.config.ray.address
    if address != "local":
        try:
            ray.init(address=address or "auto", log_to_driver=engine_logs, logging_level=logging.WARNING)
            return
        except ConnectionError:
            if address is not None:
                raise JobFailed(f"no Ray cluster at {address} (ray.address). Start it, or remove the key.") from None
    log.warning("no Ray cluster to join: starting a local one for this job")
    for name, value in QUIET_RAY.items():
        os.environ.setdefault(name, value)
    ray.init(
        address="local",
        num_cpus=plan.config.ray.num_cpus,
        object_store_memory=int(plan.config.ray.object_store_gib * 2**30),
        include_dashboard=False,
        log_to_driver=engine_logs,
        logging_level=logging.WARNING,
    )


class Run:
    """One run; `watch` blocks until it ended."""

    def __init__(
        self,
        plan: Plan,
        settings: RunSettings,
        chunks: Chunks,
        spec: JobSpec,
        pending_rows: int,
        seats: Mapping[str, int] | None = None,
        together: bool = False,
    ) -> None:
        """`seats`: engines per pool, instead of what the rows are worth. `together`: no row before all pools are
        ready."""
        self._ledger: ActorHandle[Any] = start_ledger(settings.ledger)
        nodes = cluster_nodes()
        absent = [pool for pool in plan.pools if not fits_a_node(pool, nodes)]
        for pool in absent:
            log.warning("pool %s: no node of the cluster fits it now; its engines wait for one to join", pool.name)
        by_presence = [*(pool for pool in plan.pools if pool not in absent), *absent]
        self._closed = False
        self._together = together
        self._began_s = time.monotonic()
        self._start_timeout_s = max(pool.start_timeout_s for pool in plan.pools)
        self._source = Source(make_blocks(chunks), spec, self._ledger)
        pools = {pool.name: (pool, settings.actors[pool.name]) for pool in plan.pools}
        self._fleet = Fleet(pools, seats or seats_per_pool(by_presence, pending_rows), self._ledger)

    def watch(self, on_progress: Callable[[Progress], Any], stopped: threading.Event) -> Progress:
        """Run until every row is through or `stopped` is set. Raises JobFailed when the job cannot go on."""
        import ray

        try:
            return self._watch(on_progress, stopped)
        except ray.exceptions.RayError as error:
            raise JobFailed(f"the ledger was lost: {error}. Committed rows stay; rerun to continue.") from error

    def _watch(self, on_progress: Callable[[Progress], Any], stopped: threading.Event) -> Progress:
        while True:
            progress = self.progress()
            on_progress(progress)
            self._start_source(progress)
            if progress.failure is not None:
                self._stop_engines()
                raise JobFailed(progress.failure)
            if stopped.is_set():
                return self._stop_engines()
            if progress.stopped:
                return progress
            if self._source.error is not None:
                self._stop_engines()
                raise JobFailed(f"reading the input failed: {_root_message(self._source.error)}. Rerun to continue.")
            self._fleet.look(any(life.engines_ready for life in progress.lives.values()))
            stopped.wait(POLL_S)

    def _start_source(self, progress: Progress) -> None:
        """With `together`, pools that start too late or never are not waited for beyond the time a start may take."""
        if self._source.started:
            return
        ready = {name for name, life in progress.lives.items() if life.engines_ready}
        everywhere = ready | self._fleet.broken >= progress.lives.keys()
        late = bool(ready) and time.monotonic() - self._began_s > self._start_timeout_s
        if everywhere or late or not self._together:
            self._source.start()

    def close(self) -> None:
        """Leave Ray, which ends every process of the job. After this the output is at rest."""
        import ray

        if self._closed:
            return
        self._closed = True
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # the thread's complaints about lost actors
        self._fleet.close()
        ray.shutdown()
        self._source.join(CLOSE_GRACE_S)

    def settle(self, attempts: int) -> str | None:
        """Write what was used to the cluster's ledger; what went wrong, or None."""
        import ray

        try:
            problem: str | None = ray.get(self._ledger.settle.remote(attempts))
        except ray.exceptions.RayError as error:
            problem = f"the ledger was lost: {error}"
        return problem

    def progress(self) -> Progress:
        import ray

        progress: Progress = ray.get(self._ledger.progress.remote())
        return progress

    def _stop_engines(self) -> Progress:
        """Let every engine publish what it has finished, within the time a stop allows."""
        import ray

        ray.get(self._ledger.stop.remote())
        deadline_s = time.monotonic() + STOP_GRACE_S
        progress = self.progress()
        while not progress.stopped and time.monotonic() < deadline_s:
            time.sleep(0.1)
            progress = self.progress()
        return progress


def _root_message(error: BaseException) -> str:
    """The message of what really went wrong, below the layers that Ray wraps around it."""
    seen = error
    while (cause := getattr(seen, "cause", None) or seen.__cause__) is not None and cause is not seen:
        seen = cause
    return f"{type(seen).__name__}: {str(seen).strip()}"

"""One run on Ray: join or start a cluster, run the rows through the engine actors, watch.

Role: everything of a job that needs Ray. Owns: the Ray Data pipeline and its depth.
Must not know: the command line, the output's layout.

The pipeline runs in a thread and the driver's main thread watches the commit log: Ray Data reports at the end of whole
blocks, while the log knows of every part the moment it is committed, and the main thread stays free for signals.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from batch_jobs.errors import JobFailed
from batch_jobs.input.reading import Chunk, chunk_source
from batch_jobs.plan import Plan
from batch_jobs.storage import Storage
from batch_jobs.work.commit_actor import start_commit_log
from batch_jobs.work.commit_log import Progress
from batch_jobs.work.engine_actor import ActorSettings, EngineActor

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.data import Dataset

POLL_S = 0.5
CLOSE_GRACE_S = 5.0
READ_TASKS = 2
STOP_GRACE_S = 2.0  # `ray job stop` kills three seconds after its SIGTERM

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
    ray.init(
        address="local",
        num_cpus=plan.config.ray.num_cpus,
        object_store_memory=int(plan.config.ray.object_store_gib * 2**30),
        include_dashboard=False,
        log_to_driver=engine_logs,
        logging_level=logging.WARNING,
    )


def concurrent_calls(max_in_flight: int, part_rows: int, rows_per_chunk: int) -> int:
    """Chunks that one actor works on at once: those in its engine, and those waiting for their part's commit."""
    return max(2, math.ceil((max_in_flight + part_rows) / rows_per_chunk))


class RayRun:
    """One run; `watch` blocks until it ended."""

    def __init__(self, plan: Plan, settings: ActorSettings, chunks: list[Chunk], rows_per_chunk: int) -> None:
        self._plan = plan
        self._settings = settings
        self._chunks = chunks
        self._calls = concurrent_calls(settings.max_in_flight, settings.parts.part_rows, rows_per_chunk)
        self._error: BaseException | None = None
        self._log_actor: ActorHandle[Any] = start_commit_log(
            Storage(settings.parts.output), settings.parts.run_id, plan.max_engines, plan.model
        )
        self._thread = threading.Thread(target=self._consume, name="ray-data", daemon=True)

    def _dataset(self) -> Dataset:
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        logging.getLogger("ray.data").setLevel(logging.ERROR)  # after its import, which sets levels of its own
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = False
        source = chunk_source(self._chunks)
        # Reading reserves no CPU, as the engines may have reserved them all; so its tasks are bounded by number.
        rows = ray.data.read_datasource(
            source, num_cpus=0, concurrency=READ_TASKS, override_num_blocks=len(self._chunks)
        )
        engines = min(self._plan.max_engines, len(self._chunks))
        return rows.map_batches(
            EngineActor,
            batch_size=None,
            fn_constructor_args=(self._settings, self._log_actor),
            compute=ActorPoolStrategy(
                min_size=min(self._plan.min_engines, engines),
                max_size=engines,
                max_concurrent_calls_per_actor=self._calls,
                max_tasks_in_flight_per_actor=self._calls + 2,
            ),
            **self._plan.actor_options(),
        )

    def _consume(self) -> None:
        try:
            for _ in self._dataset().iter_batches(batch_size=None):
                pass
        except BaseException as error:
            self._error = error

    def watch(self, on_progress: Callable[[Progress], None], stopped: threading.Event) -> Progress:
        """Run until every row is through or `stopped` is set. Raises JobFailed when the pipeline fails."""
        self._thread.start()
        while self._thread.is_alive():
            self._thread.join(POLL_S)
            progress = self.progress()
            on_progress(progress)
            if progress.failure is not None:
                self._stop_engines()
                raise JobFailed(progress.failure)
            if stopped.is_set():
                return self._stop_engines()
        if self._error is not None:
            raise JobFailed(_root_message(self._error)) from self._error
        return self.progress()

    def close(self) -> None:
        """Leave Ray, which ends the engines, then the pipeline's thread. After this the output is at rest."""
        import ray

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # the thread's complaints about lost actors
        ray.shutdown()
        self._thread.join(CLOSE_GRACE_S)

    def progress(self) -> Progress:
        import ray

        try:
            progress: Progress = ray.get(self._log_actor.progress.remote())
        except ray.exceptions.RayError as error:
            raise JobFailed(f"the commit log was lost: {error}. Committed rows stay; rerun to continue.") from error
        return progress

    def _stop_engines(self) -> Progress:
        """Let every engine commit what it has finished, within the time a stop allows."""
        import ray

        ray.get(self._log_actor.stop.remote())
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

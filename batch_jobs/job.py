"""An offline job from request to report: the order of events, nothing else.

Role: check everything that can be checked for free, take the output, run what is left, report. Owns: that order, and
the fingerprint that ties an output folder to one job. Must not know: the command line, Ray's details.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from batch_jobs.engines.base import VLLM_ENGINE, Sampling
from batch_jobs.errors import JobFailed, JobRefused
from batch_jobs.input.locations import find_inputs
from batch_jobs.input.reading import chunk_rows, make_chunks
from batch_jobs.input.scan import Scan, scan_inputs
from batch_jobs.output.lock import OutputLock
from batch_jobs.output.part_buffer import PartSettings
from batch_jobs.output.parts import DONE_FILE, JOB_FILE, REPORT_FILE, STAGING, Committed, Totals, read_committed
from batch_jobs.plan import Plan, make_plan
from batch_jobs.reporting.progress import ProgressView
from batch_jobs.reporting.report import Report, print_report, run_report, token_counts
from batch_jobs.storage import Storage
from batch_jobs.work.commit_log import Progress

EXIT_STOPPED = 130
_SUBMITTED_COPY = "runtime_resources"  # the folder in which Ray unpacks the --working-dir of a job


@dataclass(frozen=True)
class JobRequest:
    """What the user asked for."""

    inputs: tuple[str, ...]
    output: str
    config_path: str
    model: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    format: str = "jsonl"
    limit: int | None = None
    engine_logs: bool = False
    engine_class: str = VLLM_ENGINE


class Job:
    """Used once: `run` returns the exit code and raises JobRefused or JobFailed."""

    def __init__(self, request: JobRequest, console: Console) -> None:
        self._request = request
        self._console = console
        self._run_id = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"
        self._stop = threading.Event()
        self._connected = False

    def stop(self) -> None:
        """Called by a signal handler. Before Ray is up there is nothing to wind down: KeyboardInterrupt."""
        self._stop.set()
        if not self._connected:
            raise KeyboardInterrupt

    def run(self) -> int:
        plan = make_plan(self._request.config_path, self._request.model)
        files = find_inputs(self._request.inputs)
        storage = open_output(self._request.output)
        lock = OutputLock(storage, self._run_id)
        lock.take()
        try:
            # After the lock and before the listing: see commit_log.py, point 3.
            storage.discard_folder(STAGING)
            scan = scan_inputs(files, self._request.limit)
            check_fingerprint(storage, self._fingerprint(plan, scan))
            committed = read_committed(storage)
            self._say(f"{scan.row_count} rows, {len(committed.ids)} of them committed already")
            if len(committed.ids) >= scan.row_count:
                return self._nothing_to_do(plan, storage, scan, committed)
            storage.make_folder(f"{STAGING}/{self._run_id}")
            return self._run_rows(plan, storage, scan, committed)
        finally:
            storage.discard_folder(STAGING)
            lock.release()

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)

    def _fingerprint(self, plan: Plan, scan: Scan) -> dict[str, Any]:
        """What makes two runs the same job: everything that an answer depends on, and the form it is kept in."""
        request = self._request
        return {
            "model": plan.model,
            "sampling": vars(request.sampling),
            "format": request.format,
            "limit": request.limit,
            "rows": scan.row_count,
            "input": scan.digest,
        }

    def _nothing_to_do(self, plan: Plan, storage: Storage, scan: Scan, committed: Committed) -> int:
        self._say("every row is committed: nothing to do, no engine started")
        if not storage.exists(DONE_FILE):  # an earlier run was killed between its last commit and its report
            idle = Progress(Totals(), 0, 0.0, [], True, None)
            self._finish(plan, storage, scan, committed, idle, 0.0)
        return 0

    def _run_rows(self, plan: Plan, storage: Storage, scan: Scan, committed: Committed) -> int:
        from batch_jobs.work.engine_actor import ActorSettings
        from batch_jobs.work.ray_run import RayRun, connect

        request, offline = self._request, plan.config.offline
        rows_per_chunk = chunk_rows(scan.row_count - len(committed.ids), plan.max_engines)
        chunks = list(make_chunks(scan, committed.ids, rows_per_chunk))
        schema = scan.columns.schema()
        parts = PartSettings(
            storage.location, self._run_id, request.format, schema, offline.part_rows, offline.part_seconds
        )
        engine = plan.engine_settings(request.sampling)
        settings = ActorSettings(request.engine_class, engine, parts, plan.max_in_flight)
        connect(plan, request.engine_logs)
        self._connected = True
        began_s = time.monotonic()
        run = RayRun(plan, settings, chunks, rows_per_chunk)
        try:
            with ProgressView(self._console, scan.row_count, len(committed.ids)) as view:
                progress = run.watch(lambda now: view.show(now.totals, len(now.engine_start_s)), self._stop)
            complete = self._finish(plan, storage, scan, committed, progress, time.monotonic() - began_s)
        finally:
            run.close()
        return 0 if complete else EXIT_STOPPED

    def _finish(
        self, plan: Plan, storage: Storage, scan: Scan, committed: Committed, progress: Progress, seconds: float
    ) -> bool:
        """Write the report, and the mark of a complete output; says whether it is complete."""
        totals = committed.totals.plus(progress.totals)
        complete = totals.rows >= scan.row_count
        report = Report(
            rows_total=scan.row_count,
            rows=totals.rows,
            ok=totals.ok,
            errors=totals.errors,
            tokens=token_counts(totals),
            complete=complete,
            model=plan.model,
            run_id=self._run_id,
            run=run_report(
                progress.totals, seconds, progress.engine_start_s, progress.engines_started, progress.engine_seconds,
                plan.pool.usd_per_hour,
            ),
            config=self._config_used(plan),
        )  # fmt: skip
        storage.write(REPORT_FILE, orjson.dumps(report.as_json(), option=orjson.OPT_INDENT_2))
        if complete:
            storage.write(DONE_FILE, orjson.dumps({"run_id": self._run_id, "rows": totals.rows}))
        print_report(self._console, report)
        if not complete and not self._stop.is_set():
            raise JobFailed(f"only {totals.rows} of {scan.row_count} rows were committed. Rerun to continue.")
        if not complete:
            self._say(f"stopped: {totals.rows} of {scan.row_count} rows are committed; the same command continues")
        return complete

    def _config_used(self, plan: Plan) -> dict[str, Any]:
        return {
            "source": str(plan.config.source_path),
            "deployment_name": plan.deployment_name,
            "deployment": plan.deployment.model_dump(mode="json"),
            "pool": plan.pool.model_dump(mode="json"),
            "sampling": vars(self._request.sampling),
        }


def open_output(location: str) -> Storage:
    """The output folder, shown to be writable."""
    if "://" not in location and not Path(location).expanduser().is_absolute() and _SUBMITTED_COPY in Path.cwd().parts:
        raise JobRefused(
            f"output {location}: a submitted job runs in a temporary copy of its working directory, which Ray deletes. "
            "Give an absolute path or a URL."
        )
    storage = Storage(location)
    probe = f"_probe-{uuid.uuid4().hex[:8]}"
    try:
        storage.make_folder()
        storage.write(probe, b"")
        storage.delete(probe)
    except OSError as error:
        raise JobRefused(f"output {location}: cannot be written: {error}. Choose another folder.") from error
    return storage


def check_fingerprint(storage: Storage, mine: dict[str, Any]) -> None:
    """Refuse an output folder that another job made; mark a new one as this job's."""
    try:
        theirs = json.loads(storage.read(JOB_FILE))
    except FileNotFoundError:
        storage.write(JOB_FILE, orjson.dumps(mine, option=orjson.OPT_INDENT_2))
        return
    mine = json.loads(orjson.dumps(mine))
    different = [name for name in mine if theirs.get(name) != mine[name]]
    if different:
        raise JobRefused(
            f"output {storage.location} belongs to another job: {', '.join(different)} differ. "
            "Use another output folder, or repeat the first job's input and options."
        )

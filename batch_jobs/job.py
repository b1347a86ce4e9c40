"""An offline job from request to report: the order of events, nothing else.

Role: check everything that can be checked for free, take the output, run what is left, report. Owns: that order, and
the fingerprint that ties an output folder to one job. Must not know: the command line, Ray's details.
"""

from __future__ import annotations

import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import orjson
from rich.console import Console

from batch_jobs.errors import JobFailed, JobRefused
from batch_jobs.input.file_rows import iterate_ids
from batch_jobs.input.id_set import IdSet
from batch_jobs.input.locations import InputFile, find_inputs
from batch_jobs.input.openai_batch import holds_openai_batch
from batch_jobs.input.options import build_spec
from batch_jobs.input.scan import Scan, scan_inputs
from batch_jobs.input.spec import JobSpec
from batch_jobs.job_files import ProgressFile, check_fingerprint, open_output
from batch_jobs.output.assemble import assemble, drop_parts, is_assembled
from batch_jobs.output.committed import committed
from batch_jobs.output.lock import OutputLock
from batch_jobs.output.parts import DONE_FILE, JSONL, OPENAI, PARQUET, REPORT_FILE, STAGING, Totals
from batch_jobs.plan import Plan, make_plan
from batch_jobs.reporting.html import html_report
from batch_jobs.reporting.progress import ProgressView
from batch_jobs.reporting.report import Report, make_report, print_report
from batch_jobs.reporting.stats import Progress, RunStats
from batch_jobs.request import JobRequest
from batch_jobs.storage import Storage
from batch_jobs.work.billing import Bill, billing_of

if TYPE_CHECKING:
    from batch_jobs.work.run import Run

EXIT_STOPPED = 130
SETTLE_ATTEMPTS = 5
HTML_FILE = "report.html"


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
        request = self._request
        plan = make_plan(request.config_path, request.model, request.pools)
        files = find_inputs(request.inputs)
        spec = build_spec(
            plan.model, request.task, adapters=plan.adapters, openai_batch=holds_openai_batch(files), **request.options
        )
        storage = open_output(request.output)
        if request.dry_run is not None:
            return self._dry_run(plan, files, spec, storage)
        lock = OutputLock(storage, self._run_id)
        lock.take()
        try:
            # After the lock and before the listing: see work/ledger.py, point 2.
            storage.discard_folder(STAGING)
            assembled = is_assembled(storage)  # then parts that are left are doubles of rows in the final files
            billing = billing_of(request, plan, storage, self._run_id)
            bill = Bill(billing) if billing and billing.tenant else None  # lives are booked by who sees them
            done, totals = (IdSet(), Totals()) if assembled else committed(storage, bill.book if bill else None)
            scan = scan_inputs(files, request.limit, done, spec)
            self._format = self._part_format(files, spec)
            check_fingerprint(storage, self._fingerprint(spec, scan), request.command)
            if bill is not None:
                bill.write_once()  # what earlier runs committed and perhaps did not get to book
            if assembled:
                return self._already_assembled(storage, scan.row_count)
            self._say(f"{scan.row_count} rows, {scan.row_count - scan.pending_count} of them committed already")
            if not scan.pending_count:
                return self._nothing_to_do(plan, storage, files, spec, scan, totals)
            storage.make_folder(f"{STAGING}/{self._run_id}")
            return self._run_rows(plan, storage, files, spec, scan, totals)
        finally:
            storage.discard_folder(f"{STAGING}/{self._run_id}")  # this run's alone: the lock may be another's by now
            storage.remove_empty(STAGING)
            lock.release()

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _part_format(self, files: list[InputFile], spec: JobSpec) -> str:
        if spec.openai_batch:
            if self._request.format is not None:
                raise JobRefused("--format: OpenAI batch requests get OpenAI batch output. Leave it out.")
            return OPENAI
        same = PARQUET if all(file.format == "parquet" for file in files) else JSONL
        return self._request.format or same

    def _fingerprint(self, spec: JobSpec, scan: Scan) -> dict[str, Any]:
        """What makes two runs the same job: everything that an answer depends on, and the form it is kept in."""
        return {
            "spec": spec.as_json(),
            "format": self._format,
            "limit": self._request.limit,
            "rows": scan.row_count,
            "input": scan.digest,
        }

    def _dry_run(self, plan: Plan, files: list[InputFile], spec: JobSpec, storage: Storage) -> int:
        from batch_jobs.dry_run import dry_run

        assert self._request.dry_run is not None
        self._connected = True
        return dry_run(self._request, plan, files, spec, storage, self._run_id, self._console, self._stop)

    def _already_assembled(self, storage: Storage, rows: int) -> int:
        """An earlier run wrote the final files; at most it was killed while it removed the parts."""
        drop_parts(storage)
        ProgressFile(storage, self._run_id).finished_before(rows)
        self._say("every row is committed and the final files are written: nothing to do, no engine started")
        return 0

    def _nothing_to_do(
        self, plan: Plan, storage: Storage, files: list[InputFile], spec: JobSpec, scan: Scan, totals: Totals
    ) -> int:
        self._say("every row is committed: nothing to do, no engine started")
        if not storage.exists(DONE_FILE):  # an earlier run was killed between its last commit and its report
            stats = RunStats([pool.name for pool in plan.pools])
            self._finish(plan, storage, files, spec, scan, totals, Progress(stats, {}, stopped=True), 0.0)
        elif self._request.preserve_order:
            self._complete(storage, files, spec, totals)
        ProgressFile(storage, self._run_id).finished_before(totals.rows)
        return 0

    def _run_rows(
        self, plan: Plan, storage: Storage, files: list[InputFile], spec: JobSpec, scan: Scan, totals: Totals
    ) -> int:
        from batch_jobs.work.run import Run, connect
        from batch_jobs.work.settings import run_settings

        settings = run_settings(self._request, plan, spec, storage, self._run_id, self._format, scan.columns.schema())
        progress_file = ProgressFile(storage, self._run_id)
        connect(plan, self._request.engine_logs)
        self._connected = True
        began_s = time.monotonic()
        run = Run(plan, settings, scan.chunks, spec, scan.pending_count)
        ended_as = "failed"
        try:
            with ProgressView(self._console, scan.row_count, totals.rows, plan.prices) as view:
                progress = run.watch(lambda now: progress_file.show(view.show(now)), self._stop)
                progress_file.show(view.show(progress))
            self._settle(run)
            seconds = time.monotonic() - began_s
            run.close()  # first: engines need not be paid while the report is written
            complete = self._finish(plan, storage, files, spec, scan, totals, progress, seconds)
            ended_as = "finished" if complete else "stopped"
        finally:
            run.close()
            progress_file.end(ended_as)
        return 0 if complete else EXIT_STOPPED

    def _settle(self, run: Run) -> None:
        """Before parts are put together, which a later run could not book any more."""
        if problem := run.settle(1 if self._stop.is_set() else SETTLE_ATTEMPTS):
            if self._request.book_lives and self._request.tenant is None:
                # A rerun knows nothing of these engines: failing would mend nothing.
                self._say(f"what the engines cost was not written to the state store ({problem})")
                return
            raise JobFailed(
                f"what the job used was not written to the state store ({problem}). The rows are committed; rerun, "
                "which costs seconds, when it can be reached (state.url)."
            )

    def _finish(
        self, plan: Plan, storage: Storage, files: list[InputFile], spec: JobSpec, scan: Scan, before: Totals,
        progress: Progress, seconds: float,
    ) -> bool:  # fmt: skip
        """Write the final files, the report, and the mark of a complete output; says whether it is complete."""
        totals = before.plus(progress.stats.totals())
        report = make_report(
            model=plan.model, task=spec.task.value, run_id=self._run_id, rows_total=scan.row_count, committed=totals,
            stats=progress.stats, lives=progress.lives, prices=plan.prices, seconds=seconds,
            config=plan.as_json() | {"spec": spec.as_json()},
        )  # fmt: skip
        self._write_report(storage, report, progress.stats)
        if report.complete:
            self._complete(storage, files, spec, totals)
        print_report(self._console, report)
        if not report.complete and not self._stop.is_set():
            if totals.rows > scan.row_count:
                raise JobFailed(
                    f"{totals.rows} rows were committed of {scan.row_count}: some are there twice. This is a bug; "
                    "the parts that share an id show which."
                )
            raise JobFailed(f"only {totals.rows} of {scan.row_count} rows were committed. Rerun to continue.")
        if not report.complete:
            self._say(f"stopped: {totals.rows} of {scan.row_count} rows are committed; the same command continues")
        return report.complete

    def _write_report(self, storage: Storage, report: Report, stats: RunStats) -> None:
        storage.write(REPORT_FILE, orjson.dumps(report.as_json(), option=orjson.OPT_INDENT_2))
        storage.write(HTML_FILE, html_report(report, stats).encode())

    def _complete(self, storage: Storage, files: list[InputFile], spec: JobSpec, totals: Totals) -> None:
        """See assemble.py for why in this order."""
        assembled = spec.openai_batch or self._request.preserve_order
        if assembled:
            self._say("all rows are committed; writing them in the input's order")
            assemble(storage, self._run_id, iterate_ids(files, self._request.limit, spec.id_column), self._format)
        mark = {"run_id": self._run_id, "rows": totals.rows, "assembled": assembled}
        storage.write(DONE_FILE, orjson.dumps(mark))
        if assembled:
            drop_parts(storage)

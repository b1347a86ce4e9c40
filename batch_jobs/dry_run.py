"""A dry run: some rows for real, a prediction for all of them.

Role: sample rows from all over the input, run them on one engine of every pool, and say what the whole job would take.
Owns: the sample. Must not know: how a prediction is computed (reporting/predict.py).

Nothing is kept: the sample's answers go into a folder below the output that is removed at the end. What is measured is
real, so a dry run costs an engine start in every pool; it is the only figure worth trusting on unknown hardware.
"""

from __future__ import annotations

import threading
from dataclasses import replace

from rich.console import Console

from batch_jobs.errors import JobFailed
from batch_jobs.input.id_set import IdSet
from batch_jobs.input.locations import InputFile
from batch_jobs.input.scan import scan_inputs
from batch_jobs.input.spec import JobSpec
from batch_jobs.output.lock import OutputLock
from batch_jobs.output.parts import JSONL, STAGING
from batch_jobs.plan import Plan
from batch_jobs.reporting.predict import predict, print_prediction
from batch_jobs.reporting.progress import ProgressView
from batch_jobs.request import JobRequest
from batch_jobs.storage import Storage

EXIT_STOPPED = 130


def dry_run(
    request: JobRequest, plan: Plan, files: list[InputFile], spec: JobSpec, output: Storage, run_id: str,
    console: Console, stop: threading.Event,
) -> int:  # fmt: skip
    """Returns the exit code. Raises JobRefused and JobFailed."""
    from batch_jobs.work.fleet import seats_per_pool
    from batch_jobs.work.run import Run, connect
    from batch_jobs.work.settings import run_settings

    assert request.dry_run is not None
    scan = scan_inputs(files, request.limit, IdSet(), spec)
    sample = scan.chunks.sample(request.dry_run)
    rows = sum(chunk.pending_rows for chunk in sample)
    folder = f"_dry-run-{run_id}"
    storage = output.below(folder)
    storage.make_folder()
    lock = OutputLock(storage, run_id)
    lock.take()
    try:
        storage.make_folder(f"{STAGING}/{run_id}")
        # Billed to nobody: it has no output that would tell what was booked.
        settings = run_settings(
            replace(request, tenant=None, book_lives=False), plan, spec, storage, run_id, JSONL, scan.columns.schema()
        )
        connect(plan, request.engine_logs)
        console.print(f"dry run: {rows} of {scan.row_count} rows, one engine in every pool", highlight=False)
        run = Run(plan, settings, sample, spec, rows, seats={pool.name: 1 for pool in plan.pools}, together=True)
        try:
            with ProgressView(console, rows, 0, plan.prices) as view:
                progress = run.watch(view.show, stop)
        finally:
            run.close()
    finally:
        lock.release()
        output.discard_folder(folder)
    if stop.is_set():
        return EXIT_STOPPED
    if not progress.stopped:
        raise JobFailed("the dry run ended early; see the log above.")
    engines = seats_per_pool(plan.pools, scan.row_count)
    print_prediction(console, predict(progress.stats, progress.lives, scan.row_count, engines, plan.prices))
    return 0

"""A large batch as an offline job. Owns: the job's names, command and folder, and following it to its end.

Must not know: how the job works. The job's name is the batch's id, so a worker that was restarted finds it instead of
starting it twice; two drivers at once are kept apart by the lock of the job's output. A run that failed is followed by
`<id>-2` and so on: the job itself goes on where the one before stopped, and commits each row once.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import orjson

from batch_jobs.job_files import PROGRESS_FILE
from batch_jobs.output.assemble import is_assembled
from batch_jobs.output.committed import part_names
from batch_jobs.output.parts import OPENAI_ERRORS_FILE, OPENAI_OUTPUT_FILE
from batch_jobs.storage import Storage
from cluster.files.store import CHUNK_BYTES
from cluster.state.deferred_batches import Batch
from serve_apps.deferred.jobs import ENDED, JobRefusedError, Jobs
from serve_apps.deferred.shop import Shop

FOLDER = "jobs"
MAX_RUNS = 5
STOP_WAIT_S = 90.0
RETRY_S = 5.0
CONFIG_FILE = "config.json"
log = logging.getLogger(__name__)


class JobStillRunsError(Exception):
    """A stopped job did not end in time: its output may still grow."""


async def run_job(shop: Shop, batch: Batch, input_name: str) -> None:
    """Have the job run until its output is complete, or it has failed too often. Stopping this leaves it running."""
    assert batch.model is not None
    await shop.job_slots.take(batch.model, batch.tenant)
    try:
        await _run_job(shop, batch, input_name)
    finally:
        shop.job_slots.give(batch.model, batch.tenant)


async def _run_job(shop: Shop, batch: Batch, input_name: str) -> None:
    assert shop.jobs is not None
    storage = folder_of(shop, batch)
    for job_id in _names(batch.id):
        status = await _status(shop.jobs, job_id)
        if status is None:
            log.info("batch %s: starting offline job %s", batch.id, job_id)
            await asyncio.to_thread(_submit, shop, batch, input_name, job_id)
        while (status := await _status(shop.jobs, job_id)) not in (*ENDED, None):
            await _show(shop, batch, storage)
            await asyncio.sleep(shop.pace.job_s)
        if await asyncio.to_thread(is_assembled, storage):
            return
        log.warning("batch %s: offline job %s ended as %s before its output was complete", batch.id, job_id, status)
        await asyncio.sleep(shop.pace.job_s)


async def stop_job(shop: Shop, batch: Batch) -> None:
    """Make sure that no job works for this batch. Raises JobStillRunsError, JobRefusedError."""
    if shop.jobs is None:
        raise JobRefusedError("there is no cluster to ask for jobs")
    for job_id in _names(batch.id):
        status = await _status(shop.jobs, job_id)
        if status is None:
            return
        if status in ENDED:
            continue
        await asyncio.to_thread(shop.jobs.stop, job_id)
        deadline_s = time.monotonic() + STOP_WAIT_S
        while await _status(shop.jobs, job_id) not in (*ENDED, None):
            if time.monotonic() > deadline_s:
                raise JobStillRunsError(job_id)
            await asyncio.sleep(shop.pace.job_s / 4)


def folder_of(shop: Shop, batch: Batch) -> Storage:
    return Storage(shop.files.location(f"{FOLDER}/{batch.id}"))


def committed_lines(storage: Storage) -> Iterator[bytes]:
    """All lines that the job committed, each once, in OpenAI's form."""
    # Complete files first: parts that are left beside them are doubles.
    names = [OPENAI_OUTPUT_FILE, OPENAI_ERRORS_FILE] if is_assembled(storage) else part_names(storage)
    for name in names:
        with storage.open_input(name) as source:
            yield from io.BufferedReader(source, CHUNK_BYTES)


def _names(batch_id: str) -> list[str]:
    return [batch_id, *(f"{batch_id}-{number}" for number in range(2, MAX_RUNS + 1))]


async def _status(jobs: Jobs, job_id: str) -> str | None:
    """What Ray says; a dashboard that is away is asked again by whoever takes the batch next."""
    return await asyncio.to_thread(jobs.status, job_id)


def _submit(shop: Shop, batch: Batch, input_name: str, job_id: str) -> None:
    assert shop.jobs is not None and batch.model is not None
    argv = [Path(sys.executable).name, "-m", "batch_jobs.generate", "--config", CONFIG_FILE]
    argv += ["--input", shop.files.location(input_name)]
    argv += ["--output", shop.files.location(f"{FOLDER}/{batch.id}"), "--model", batch.model]
    argv += ["--book-lives"]  # not --tenant: the tokens are billed when the batch ends (outputs.py)
    # The configuration travels with the job: its driver may run on another machine than the file is on.
    with tempfile.TemporaryDirectory(prefix="tribes-job-") as folder:
        plain = shop.config.model_dump(mode="json", exclude={"source_path"})
        Path(folder, CONFIG_FILE).write_text(json.dumps(plain))
        shop.jobs.submit(job_id, shlex.join(argv), Path(folder))


async def _show(shop: Shop, batch: Batch, storage: Storage) -> None:
    try:
        now = orjson.loads(await asyncio.to_thread(storage.read, PROGRESS_FILE))
    except (OSError, orjson.JSONDecodeError):
        return  # not there yet, or being written
    done, errors = int(now.get("rows_done", 0)), int(now.get("errors", 0))
    await asyncio.to_thread(shop.deferred.batches.show, batch.id, batch.fence, max(0, done - errors), errors)

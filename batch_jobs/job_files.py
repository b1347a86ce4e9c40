"""The output folder as a job's own: writable, marked as this job's, with its progress in it.

Role: the small files around the parts. Owns: `_job.json` (whose output this is) and `_progress.json`.
Must not know: rows, engines, Ray.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from batch_jobs.errors import JobRefused
from batch_jobs.output.parts import JOB_FILE
from batch_jobs.reporting.snapshot import Snapshot
from batch_jobs.storage import Storage, shown

PROGRESS_FILE = "_progress.json"
PROGRESS_EVERY_S = 2.0
_SUBMITTED_COPY = "runtime_resources"  # the folder in which Ray unpacks the --working-dir of a job
_NOT_IDENTITY = ("command", "source")

log = logging.getLogger(__name__)


def open_output(location: str) -> Storage:
    """The output folder, shown to be writable."""
    if "://" not in location and not Path(location).expanduser().is_absolute() and _SUBMITTED_COPY in Path.cwd().parts:
        raise JobRefused(
            f"output {shown(location)}: a submitted job runs in a temporary copy of its working directory, which "
            "Ray deletes. Give an absolute path or a URL."
        )
    probe = f"_probe-{uuid.uuid4().hex[:8]}"
    try:
        storage = Storage(location)
        storage.make_folder()
        storage.write(probe, b"")
        storage.delete(probe)
    except (OSError, ValueError) as error:
        raise JobRefused(f"output {shown(location)}: cannot be written: {error}. Choose another folder.") from error
    return storage


def check_fingerprint(storage: Storage, mine: dict[str, Any], command: Sequence[str]) -> None:
    """Refuse an output folder that another job made; mark a new one as this job's."""
    mine = json.loads(orjson.dumps(mine))
    try:
        theirs = json.loads(storage.read(JOB_FILE))
    except FileNotFoundError:
        marked = mine | {"command": list(command), "source": str(Path.cwd())}
        storage.write(JOB_FILE, orjson.dumps(marked, option=orjson.OPT_INDENT_2))
        return
    different = [name for name in mine if name not in _NOT_IDENTITY and theirs.get(name) != mine[name]]
    if different:
        raise JobRefused(
            f"output {storage.shown} belongs to another job: {', '.join(different)} differ. "
            "Use another output folder, or repeat the first job's input and options."
        )


class ProgressFile:
    """`_progress.json`, for those who look from outside. What cannot be written is only not seen."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        self._storage = storage
        self._run_id = run_id
        self._written_s = 0.0
        self._last: dict[str, Any] = {}

    def show(self, look: Snapshot) -> None:
        self._last = look.as_json()
        if time.monotonic() - self._written_s >= PROGRESS_EVERY_S:
            self._write("running" if look.engines_ready else "starting")

    def finished_before(self, rows: int) -> None:
        """Nothing was left to do: an earlier run was killed after its last commit, or the job was complete."""
        self._last = {"rows_done": rows, "rows_total": rows}
        self._write("finished")

    def end(self, state: str) -> None:
        """`finished`, `stopped` or `failed`."""
        self._write(state)

    def _write(self, state: str) -> None:
        self._written_s = time.monotonic()
        data = self._last | {"state": state, "run_id": self._run_id, "updated_unix_s": time.time()}
        try:
            self._storage.write(PROGRESS_FILE, orjson.dumps(data))
        except OSError as error:
            log.warning("progress cannot be written, will try again: %s", error)

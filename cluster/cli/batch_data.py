"""Which offline jobs there are and what is known of each, as plain data.

Owns: joining Ray's list, the registry and the outputs, and finding the one job that a user names.
Must not know: tables, the screen, how jobs are stopped or started.
"""

from __future__ import annotations

import difflib
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.cli.batch_options import MODULE, absolute, output_of
from cluster.cli.batch_output import OutputState
from cluster.cli.batch_reader import read_output, read_outputs
from cluster.cli.batch_registry import Registry, Submission
from cluster.cli.errors import UsageError, explained
from cluster.cli.jobs import JobsClient, list_jobs
from cluster.local import LocalClusterError

if TYPE_CHECKING:
    from cluster.config import TribesConfig

KIND, OUTPUT, MODEL = "tribes.kind", "tribes.output", "tribes.model"
RAY_S = 20.0
LOG_LINES = 20
_LIVE = ("pending", "running")
_RECENT = 5


@dataclass(frozen=True, slots=True)
class BatchJob:
    """One submission, or with `id` None an output whose driver was not started through Ray Jobs."""

    id: str | None
    output: str | None
    model: str | None = None
    command: str | None = None
    config: str | None = None
    submitted_at_s: float | None = None
    ray_status: str | None = None
    """Lower case; None when Ray does not know the job or was not asked."""
    message: str = ""

    @property
    def name(self) -> str:
        return self.id or self.output or "?"

    def status(self, state: OutputState | None) -> str:
        """Ray's word where it has one, else the output's."""
        return self.ray_status or (state.status if state is not None else "?")

    def is_live(self, state: OutputState | None) -> bool:
        return self.status(state) in _LIVE


@dataclass(frozen=True, slots=True)
class Known:
    """All jobs, the newest first, and why Ray's own list is missing (None: it is not)."""

    jobs: list[BatchJob]
    no_ray: str | None


def metadata(output: str, model: str | None) -> dict[str, str]:
    """What Ray keeps beside a job of ours."""
    return {KIND: "batch", OUTPUT: output, MODEL: model or ""}


def known_jobs(config: TribesConfig) -> Known:
    """From Ray and from the registry; without a cluster the registry alone."""
    from_ray, no_ray = _ray_jobs(config)
    rays = {str(job["id"]): job for job in from_ray}
    jobs = [_of_submission(item, rays.pop(item.id, None)) for item in Registry(config.paths.data).submissions()]
    jobs += [_of_ray(job) for job in rays.values() if _is_batch(job)]
    jobs.sort(key=lambda job: job.submitted_at_s or 0.0, reverse=True)
    return Known(jobs, no_ray)


def _ray_jobs(config: TribesConfig) -> tuple[list[dict[str, Any]], str | None]:
    """Ray's list in bounded time: its client waits for ever for a dashboard that accepts and does not answer."""
    answer: list[tuple[list[dict[str, Any]], str | None]] = []

    def ask() -> None:
        try:
            answer.append((list_jobs(config, None), None))
        except Exception as error:  # whatever is wrong with it, the jobs are listed without Ray
            answer.append(([], explained(error) or f"{type(error).__name__}: {error}"))

    asking = threading.Thread(target=ask, name="ray-jobs", daemon=True)
    asking.start()
    asking.join(RAY_S)
    return answer[0] if answer else ([], f"Ray's dashboard did not answer within {RAY_S:g} s")


def _is_batch(job: dict[str, Any]) -> bool:
    return job.get("metadata", {}).get(KIND) == "batch" or MODULE in job["entrypoint"]


def _of_submission(item: Submission, ray: dict[str, Any] | None) -> BatchJob:
    return BatchJob(
        item.id, item.output, item.model, item.command, item.config, item.submitted_at_s,
        str(ray["status"]).lower() if ray else None, ray["message"] or "" if ray else "",
    )  # fmt: skip


def _of_ray(ray: dict[str, Any]) -> BatchJob:
    """A job submitted from another machine, by the demo or by hand."""
    about = ray.get("metadata", {})
    output = about.get(OUTPUT) or output_of(ray["entrypoint"])
    # Only ours is known to mean the same wherever it runs.
    command = ray["entrypoint"] if about.get(KIND) == "batch" else None
    return BatchJob(
        str(ray["id"]), output, about.get(MODEL) or None, command, None, ray["started_at_s"],
        str(ray["status"]).lower(), ray["message"] or "",
    )  # fmt: skip


def list_data(config: TribesConfig, limit: int) -> dict[str, Any]:
    """What `tribes batch ls` shows."""
    known = known_jobs(config)
    jobs = known.jobs[:limit]
    states = read_outputs(job.output for job in jobs if job.output is not None)
    rows = [job_row(job, states.get(job.output or "")) for job in jobs]
    return {"jobs": rows, "hidden": len(known.jobs) - len(jobs), "no_ray": known.no_ray}


def job_row(job: BatchJob, state: OutputState | None) -> dict[str, Any]:
    """One job in numbers; rates and ETA only while it runs or of its last run."""
    seen = state or OutputState(job.output or "", problem="the job's output folder is not known")
    live = job.is_live(state)
    return {
        "id": job.id,
        "status": job.status(state),
        "model": job.model or seen.model,
        "submitted_at_s": job.submitted_at_s,
        "rows_done": seen.rows_done,
        "rows_total": seen.rows_total,
        "percent": seen.percent,
        "errors": sum(seen.errors.values()),
        **seen.rates,
        "eta_s": seen.eta_s if live else None,
        "usd": seen.usd,
        "output": job.output,
        "problem": seen.problem,
    }


def find_job(known: Known, target: str) -> BatchJob:
    """The job with this id, of this output, or the only one whose id begins so. Raises UsageError with what is near."""
    for job in known.jobs:
        if job.id == target:
            return job
    if "/" in target or Path(target).is_dir():
        output = same_output(target)
        newest = next((job for job in known.jobs if job.output and same_output(job.output) == output), None)
        return newest or BatchJob(None, output)
    begun = [job for job in known.jobs if job.id and (job.id.startswith(target) or _short(job.id).startswith(target))]
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise UsageError(f"{target!r} begins the ids of {len(begun)} jobs: {_names(begun)}. Give more of it.")
    raise UsageError(_unknown(known, target))


def same_output(location: str) -> str:
    """One spelling for one place."""
    return location.rstrip("/") if "://" in location else os.path.normpath(absolute(location))


def _short(job_id: str) -> str:
    return job_id.removeprefix("raysubmit_")


def _names(jobs: Sequence[BatchJob]) -> str:
    shown = ", ".join(job.name for job in jobs[:_RECENT])
    return f"{shown}, ..." if len(jobs) > _RECENT else shown


def _unknown(known: Known, target: str) -> str:
    without = f" (Ray was not asked: {known.no_ray})" if known.no_ray else ""
    if not known.jobs:
        return f"no offline job {target!r}: none was submitted with this configuration{without}"
    by_name = {name: job for job in known.jobs if job.id for name in (job.id, _short(job.id))}
    close = difflib.get_close_matches(target, by_name, n=_RECENT)
    near = list({by_name[name].name: by_name[name] for name in close}.values())
    hint = f"Did you mean {_names(near)}?" if near else f"The newest are: {_names(known.jobs)}."
    return f"no offline job {target!r}{without}. {hint} `tribes batch ls` shows all; an output folder is a name too."


def read_job_output(job: BatchJob) -> OutputState | None:
    """The state of a job's output; None when it is not known where that is."""
    if job.output is None:
        return None
    return read_outputs([job.output])[job.output] if "://" in job.output else read_output(job.output)


def require_output(job: BatchJob, state: OutputState | None) -> None:
    """An output named by its path has to be one of a job."""
    if job.id is not None or state is None or state.is_job:
        return
    if state.problem is not None:
        raise UsageError(f"{job.output} cannot be read: {state.problem}")
    raise UsageError(f"{job.output} is no output of an offline job: it has no _job.json, and no job is known for it")


def show_data(config: TribesConfig, job: BatchJob) -> dict[str, Any]:
    """What `tribes batch show` shows."""
    state = read_job_output(job)
    require_output(job, state)
    seen = state or OutputState("", problem="the job's output folder is not known")
    settings = {name: value for name, value in seen.job.items() if name not in ("command", "source", "spec")}
    return {
        **job_row(job, state),
        "command": job.command,
        "settings": seen.spec | settings,
        "state": seen.progress.get("state"),
        "updated_s_ago": _age(seen.progress.get("updated_unix_s")),
        "pools": seen.pools,
        "failure": seen.progress.get("failure"),
        "errors_by_kind": seen.errors,
        "report": seen.report,
        "files": [f"{seen.shown}/{name}" for name in seen.names],
        "log_tail": _log_tail(config, job),
    }


def _age(unix_s: object) -> float | None:
    return max(0.0, time.time() - unix_s) if isinstance(unix_s, int | float) else None


def _log_tail(config: TribesConfig, job: BatchJob) -> list[str]:
    """The last lines of a failed job: from its log, else from what Ray kept of it."""
    if job.ray_status != "failed" or job.id is None:
        return []
    try:
        text = JobsClient(config).log(job.id)
    except LocalClusterError:  # it went down since
        text = ""
    return (text or job.message).rstrip().splitlines()[-LOG_LINES:]

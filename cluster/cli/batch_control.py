"""Starting, stopping and continuing offline jobs.

Owns: the order of the steps and the refusals. Must not know: options, tables, what a job does.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.cli.batch_data import (
    BatchJob,
    find_job,
    known_jobs,
    metadata,
    read_job_output,
    require_output,
    same_output,
)
from cluster.cli.batch_options import absolute, job_argv, resumed_argv
from cluster.cli.batch_output import OutputState
from cluster.cli.batch_registry import Registry, Submission
from cluster.cli.errors import UsageError
from cluster.cli.jobs import POLL_S, STOP_S, JobsClient

if TYPE_CHECKING:
    from cluster.config import TribesConfig

DRY_RUN = "--dry-run"


def submit(
    config: TribesConfig, jobs: JobsClient, inputs: Sequence[str], output: str, model: str | None, extra: Sequence[str]
) -> Submission:
    """Hand a new job to Ray and note it."""
    assert config.source_path is not None
    argv = job_argv(inputs, output, config.source_path, model, extra)
    return _start(config, jobs, shlex.join(argv), absolute(output), model or _only_model(config))


def _only_model(config: TribesConfig) -> str | None:
    """The model that a job without --model uses."""
    models = [name for name in config.models if config.offline_deployments(name)]
    return models[0] if len(models) == 1 else None


def _start(
    config: TribesConfig, jobs: JobsClient, command: str, output: str, model: str | None, config_path: str | None = None
) -> Submission:
    job_id = jobs.submit(command, metadata(output, model))
    started = Submission(job_id, command, output, model, config_path or str(config.source_path), time.time())
    if DRY_RUN not in shlex.split(command):  # which leaves no output: nothing to list or to continue
        Registry(config.paths.data).record(started)
    return started


def cancel(config: TribesConfig, target: str, say: Callable[[str], None]) -> None:
    """Stop a job gently and say what is kept. One that has ended is only described."""
    job = find_job(known_jobs(config), target)
    state = read_job_output(job)
    require_output(job, state)
    if job.ray_status in ("pending", "running"):
        assert job.id is not None
        say(f"stopping {job.id}: what is finished is being committed")
        ended = JobsClient(config).stop(job.id)
    elif state is not None and state.driver_alive:
        ended = _stop_driver(state, say)
    else:
        say(f"nothing to stop: {job.name} is not running ({job.status(state)})")
        return
    if not ended:
        raise UsageError(
            f"{job.name} has not ended within {STOP_S:g} s: `tribes batch show {job.name}` tells how it is"
        )
    _say_kept(job, read_job_output(job), state is not None and state.running_now, say)


def _stop_driver(state: OutputState, say: Callable[[str], None]) -> bool:
    """SIGTERM for a driver that Ray Jobs did not start; says whether it has ended."""
    pid, host = int(state.lock["pid"]), str(state.lock["host"])
    if host != socket.gethostname():
        raise UsageError(
            f"the driver of {state.shown} runs on {host} as process {pid} and was not started through Ray Jobs: "
            f"run `kill {pid}` there; it commits what is finished and ends"
        )
    say(f"stopping process {pid}: what is finished is being committed")
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return True
    except PermissionError as error:
        raise UsageError(f"process {pid} belongs to another user: run `sudo kill {pid}`") from error
    deadline = time.monotonic() + STOP_S
    while state.driver_alive and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return not state.driver_alive


def _say_kept(job: BatchJob, state: OutputState | None, was_running: bool, say: Callable[[str], None]) -> None:
    if state is None or state.problem is not None:
        say(f"{job.name} has stopped; its output could not be read{f': {state.problem}' if state else ''}")
        return
    if state.complete:
        say(f"{job.name} was just complete: all {state.rows_done} rows are in {state.shown}")
        return
    if state.rows_done is None:
        kept = f"it had not begun: nothing is in {state.shown}"
    else:
        kept = f"{state.rows_done} of {state.rows_total} rows are kept in {state.shown}"
    say(f"{job.name} has stopped; {kept}")
    if was_running and state.progress.get("state") in ("starting", "running"):
        say("it was killed before it could say so: rows that were not committed yet will be answered again")
    say(f"`tribes batch resume {job.name}` does the rest")


def resume(config: TribesConfig, target: str, say: Callable[[str], None]) -> tuple[JobsClient, Submission]:
    """Submit a job's command again. Raises UsageError when it is complete, at work or unknown how to start."""
    known = known_jobs(config)
    job = find_job(known, target)
    state = read_job_output(job)
    require_output(job, state)
    if state is None or job.output is None:
        raise UsageError(f"the output of {job.name} is not known: submit it again with the same options")
    if state.problem is not None:
        raise UsageError(f"the output of {job.name} cannot be read: {state.problem}")
    if state.complete:
        raise UsageError(f"{job.name} is complete: all {state.rows_done} rows are in {state.shown}")
    here = [other for other in known.jobs if other.output and same_output(other.output) == same_output(job.output)]
    live = next((other for other in here if other.ray_status in ("pending", "running")), None)
    if live is not None or state.driver_alive:
        at_work = (live or job).name
        raise UsageError(f"{at_work} is at work on {job.output}: `tribes batch show {at_work} --follow` follows it")
    command = job.command or _recorded_command(config, job, state)
    jobs = JobsClient(config)
    if state.rows_done is not None:
        say(f"{state.rows_done} of {state.rows_total} rows are committed already")
    return jobs, _start(config, jobs, command, job.output, job.model or state.model, job.config)


def _recorded_command(config: TribesConfig, job: BatchJob, state: OutputState) -> str:
    """From the output itself."""
    words = state.job.get("command")
    if not isinstance(words, list) or not words or job.output is None:
        raise UsageError(
            f"how {job.name} was started is not recorded: repeat its `tribes batch submit` with the same --output"
        )
    assert config.source_path is not None
    try:
        base = Path(str(state.job.get("source") or Path.cwd()))
        return shlex.join(resumed_argv([str(word) for word in words], base, job.output, config.source_path))
    except FileNotFoundError as error:
        raise UsageError(
            f"{error}, which {job.name} was started with, is not here: put it back, or run this where it is"
        ) from error

"""Offline jobs through the Ray Jobs API: the same as `ray job submit`, `list`, `stop` and `logs --follow`.

Owns: the calls, and following a job to its end. Must not know: what the job does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster.cli.batch_options import job_argv
from cluster.local import LocalClusterError
from cluster.local.auth import enable_token_auth
from cluster.local.deploy import dashboard_url
from cluster.local.head import JOB_STOP_WAIT_S

if TYPE_CHECKING:
    from cluster.config import TribesConfig

POLL_S = 0.5
REJOIN_S = 1.0
STOP_S = JOB_STOP_WAIT_S + 10.0
PROBE_S = 3.0


def entrypoint(
    config_path: Path,
    source: str | Sequence[str],
    output: str,
    *,
    model: str | None = None,
    max_tokens: int | None = None,
    extra: Sequence[str] = (),
) -> str:
    """The command that runs on the cluster."""
    inputs = [source] if isinstance(source, str) else source
    longest = [] if max_tokens is None else ["--max-tokens", str(max_tokens)]
    return shlex.join(job_argv(inputs, output, config_path, model, [*longest, *extra]))


class JobsClient:
    """One cluster's jobs. Raises LocalClusterError when Ray's dashboard does not answer."""

    def __init__(self, config: TribesConfig) -> None:
        self._address = dashboard_url(config)
        _probe(self._address)
        enable_token_auth()
        from ray.job_submission import JobSubmissionClient

        # It tells every end of a log stream at level INFO.
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
        try:
            self._client = JobSubmissionClient(self._address)
        except ConnectionError as error:
            raise _no_dashboard(self._address) from error

    def submit(self, command: str, metadata: dict[str, str] | None = None) -> str:
        """The id of the new job."""
        try:
            return str(self._client.submit_job(entrypoint=command, metadata=metadata))
        except RuntimeError as error:
            raise LocalClusterError(f"Ray refused the job: {error}") from error

    def stop(self, job_id: str, timeout_s: float = STOP_S) -> bool:
        """Ask a job to stop and give it time to commit what it has; says whether it has ended."""
        with contextlib.suppress(RuntimeError):
            self._client.stop_job(job_id)
            deadline = time.monotonic() + timeout_s
            while not (ended := self._ended(job_id)) and time.monotonic() < deadline:
                time.sleep(POLL_S)
            return ended
        return False

    def log(self, job_id: str) -> str:
        """All that the job printed; "" when Ray has it no more."""
        try:
            return str(self._client.get_job_logs(job_id))
        except RuntimeError:
            return ""

    def follow(self, job_id: str, on_line: Callable[[str], None], timeout_s: float | None = None) -> int:
        """Pass on the job's output until it ends; returns its exit code. TimeoutError after `timeout_s`."""
        return asyncio.run(self._follow(job_id, on_line, timeout_s))

    async def _follow(self, job_id: str, on_line: Callable[[str], None], timeout_s: float | None) -> int:
        lines = Lines(on_line)
        async with asyncio.timeout(timeout_s):
            while not await asyncio.to_thread(self._ended, job_id):
                # The stream may break while the job goes on. A new one starts from the beginning: skip what was seen.
                lines.restart()
                with contextlib.suppress(RuntimeError, OSError):
                    async for text in self._client.tail_job_logs(job_id):
                        lines.feed(text)
                await asyncio.sleep(REJOIN_S if lines.seen else POLL_S)
            lines.restart()
            lines.feed(await asyncio.to_thread(self._client.get_job_logs, job_id))
            lines.end()
            return await asyncio.to_thread(self._exit_code, job_id)

    def _ended(self, job_id: str) -> bool:
        return bool(self._client.get_job_status(job_id).is_terminal())

    def _exit_code(self, job_id: str) -> int:
        details = self._client.get_job_info(job_id)
        if details.driver_exit_code is not None:
            return int(details.driver_exit_code)
        return 0 if str(details.status) == "SUCCEEDED" else 1

    def list(self, limit: int | None = None) -> list[dict[str, Any]]:
        """The newest submitted jobs."""
        jobs = [job for job in self._client.list_jobs() if job.submission_id]
        jobs.sort(key=lambda job: job.start_time or 0, reverse=True)
        return [
            {
                "id": job.submission_id,
                "status": str(job.status.value),
                "entrypoint": job.entrypoint,
                "message": job.message,
                "started_at_s": job.start_time / 1000 if job.start_time else None,
                "ended_at_s": job.end_time / 1000 if job.end_time else None,
                "exit_code": job.driver_exit_code,
                "metadata": dict(job.metadata or {}),
            }
            for job in jobs[:limit]
        ]


def _probe(address: str) -> None:
    """Whether anything listens there: known at once, while loading Ray to ask takes seconds."""
    parts = urlsplit(address)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 80), PROBE_S).close()
    except OSError as error:
        raise _no_dashboard(address) from error


def _no_dashboard(address: str) -> LocalClusterError:
    return LocalClusterError(f"no Ray dashboard at {address}: run `tribes up` first")


def list_jobs(config: TribesConfig, limit: int | None) -> list[dict[str, Any]]:
    return JobsClient(config).list(limit)


class Lines:
    """Turns chunks of a log into whole lines, each passed on once however often the log is read from its start."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._position = 0
        self._part = ""
        self.seen = 0
        """Characters passed on or held so far."""

    def restart(self) -> None:
        """The next chunk is the log's beginning again."""
        self._position = 0

    def feed(self, text: str) -> None:
        fresh = text[max(0, self.seen - self._position) :]
        self._position += len(text)
        self.seen = max(self.seen, self._position)
        *whole, self._part = (self._part + fresh).split("\n")
        for line in whole:
            self._on_line(line)

    def end(self) -> None:
        """The log is over: its last line may lack the newline."""
        if self._part:
            self._on_line(self._part)
            self._part = ""

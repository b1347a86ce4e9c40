"""Offline jobs as the worker sees them: started under a name of its own, looked up by it, stopped.

Owns: calls to the Ray Jobs API. Must not know: batches, what a job does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class JobRefusedError(Exception):
    """The job could not be started now."""


class Jobs(Protocol):
    """Where jobs run. Calls block. A job that was never started, or is forgotten, has the status None."""

    def submit(self, job_id: str, entrypoint: str, working_dir: Path) -> None: ...

    def status(self, job_id: str) -> str | None: ...

    def stop(self, job_id: str) -> None: ...


class RayJobs:
    """The cluster that this process belongs to. It connects when it is first asked, and again after a failure."""

    def __init__(self) -> None:
        self._connected: Any = None

    def submit(self, job_id: str, entrypoint: str, working_dir: Path) -> None:
        """A job of that name that is there already is as good. Raises JobRefusedError."""
        try:
            self._client().submit_job(
                entrypoint=entrypoint,
                submission_id=job_id,
                runtime_env={"working_dir": str(working_dir)},
                metadata={"batch": job_id},
            )
        except (RuntimeError, OSError) as error:
            if self.status(job_id) is None:
                raise JobRefusedError(str(error)) from error

    def status(self, job_id: str) -> str | None:
        """Raises JobRefusedError when nobody answers."""
        try:
            return str(self._client().get_job_status(job_id).value)
        except RuntimeError as error:
            if "status code 404" in str(error):
                return None
            raise JobRefusedError(str(error)) from error
        except OSError as error:
            self._connected = None
            raise JobRefusedError(f"Ray's dashboard does not answer: {error}") from error

    def stop(self, job_id: str) -> None:
        try:
            self._client().stop_job(job_id)
        except RuntimeError:
            return  # it has ended
        except OSError as error:
            raise JobRefusedError(f"Ray's dashboard does not answer: {error}") from error

    def _client(self) -> Any:
        if self._connected is None:
            from ray.job_submission import JobSubmissionClient

            self._connected = JobSubmissionClient(_dashboard())
        return self._connected


def _dashboard() -> str:
    """The address of the dashboard, which runs on the head node, wherever this process runs."""
    import ray
    from ray.dashboard.utils import get_address_for_submission_client

    return str(get_address_for_submission_client(ray.get_runtime_context().gcs_address))

"""The two ways something goes wrong in a job: the whole job is refused, or one row is.

Owns: the exception types and the vocabulary of row errors. Must not know: who raises them.
"""

from __future__ import annotations

from enum import StrEnum


class JobRefused(Exception):
    """The job cannot run as asked. The message names the cause and the cure; nothing was started or spent."""


class JobFailed(Exception):
    """The job stopped half way. What was committed stays; a rerun continues."""


class RowErrorKind(StrEnum):
    """Values of `error.type` in an output row."""

    INVALID_JSON = "invalid_json"
    INVALID_CSV = "invalid_csv"
    INVALID_ID = "invalid_id"
    MISSING_PROMPT = "missing_prompt"
    INVALID_PROMPT = "invalid_prompt"
    INVALID_PARAMS = "invalid_params"
    """The row's own parameters are not what a request can carry."""
    INVALID_REQUEST = "invalid_request"
    """A request that is not allowed in this job, or that the engine refused."""
    PROMPT_TOO_LONG = "prompt_too_long"
    TEMPLATE_FAILED = "template_failed"
    GENERATION_FAILED = "generation_failed"
    ENGINE_CRASHED = "engine_crashed"
    """The row was alone in an engine that died."""


class RowError(Exception):
    """One row cannot be answered; it becomes an error row and the job goes on."""

    def __init__(self, kind: RowErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message

    def __reduce__(self) -> tuple[type[RowError], tuple[RowErrorKind, str]]:
        return RowError, (self.kind, self.message)

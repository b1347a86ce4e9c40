"""The output folder: its names, and what a finished row is.

Role: the vocabulary that everybody who touches the output shares. Owns: the layout below, Result and Totals.
Must not know: engines, Ray, the bytes of a part (encoding.py, committed.py), who may commit.

    part-<engine>-<n>.jsonl|parquet   committed rows; never changed once they have this name
    part-<engine>-<n>.openai.jsonl    the same of a job of OpenAI batch requests
    ordered-<n>.jsonl|parquet         all rows in input order, when that was asked for (assemble.py)
    output.jsonl, errors.jsonl        all rows of OpenAI batch requests, in input order
    report.json, report.html          results of the last run
    done.json                         exists when every row is committed, and the ordered files are written
    _job.json, _progress.json         whose output this is; the last look at the run (job_files.py)
    _lock.json, _heartbeat-<run>      who writes to it now (lock.py)
    _staging/<run>/...                files not committed yet; never read
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STAGING = "_staging"
JOB_FILE = "_job.json"
LOCK_FILE = "_lock.json"
REPORT_FILE = "report.json"
DONE_FILE = "done.json"
PART_PREFIX = "part-"
ORDERED_PREFIX = "ordered-"
OPENAI_OUTPUT_FILE = "output.jsonl"
OPENAI_ERRORS_FILE = "errors.jsonl"

JSONL = "jsonl"
PARQUET = "parquet"
OPENAI = "openai"
PART_FORMATS = (JSONL, PARQUET, OPENAI)
_ENDINGS = {JSONL: ".jsonl", PARQUET: ".parquet", OPENAI: ".openai.jsonl"}


@dataclass(frozen=True)
class Result:
    """What became of one row. Exactly one of `output` and `error` is set; an answer of tool calls alone has neither.

    `output` is a text; a list of texts (several prompts, or n > 1); a list of floats (an embedding, the probabilities
    of classes); a float (a score); or, in a job of OpenAI batch requests, the response's body.
    """

    output: Any = None
    finish_reason: str | None = None
    """Several answers: their reasons, joined by commas."""
    tool_calls: list[Any] | None = None
    label: str | None = None
    """The class that a classifier finds most likely."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    duplicate_of: str | None = None
    """Id of the row whose answer was copied; then the tokens are that row's, and were not spent again."""
    error: dict[str, Any] | None = None
    """`type` and `message`; an OpenAI batch row may add `status` and `body`, what the engine answered."""


@dataclass
class Totals:
    """Sums over rows. A duplicate is a row, but its tokens were computed for another."""

    rows: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0

    @property
    def error_rows(self) -> int:
        return sum(self.errors.values())

    @property
    def ok(self) -> int:
        return self.rows - self.error_rows

    def add(
        self, prompt_tokens: int, cached_tokens: int, output_tokens: int, error: str | None, duplicate: bool = False
    ) -> None:
        self.rows += 1
        if duplicate:
            self.duplicates += 1
        else:
            self.prompt_tokens += prompt_tokens
            self.cached_tokens += cached_tokens
            self.output_tokens += output_tokens
        if error is not None:
            self.errors[error] = self.errors.get(error, 0) + 1

    def plus(self, other: Totals) -> Totals:
        errors = {kind: self.errors.get(kind, 0) + other.errors.get(kind, 0) for kind in self.errors | other.errors}
        return Totals(
            self.rows + other.rows,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
            errors,
            self.duplicates + other.duplicates,
        )


def part_name(engine_id: str, number: int, part_format: str) -> str:
    return f"{PART_PREFIX}{engine_id}-{number:05d}{_ENDINGS[part_format]}"


def staged_name(run_id: str, part: str) -> str:
    return f"{STAGING}/{run_id}/{part}"


def is_part(name: str) -> bool:
    return name.startswith(PART_PREFIX) and name.endswith(tuple(_ENDINGS.values()))


def format_of(part: str) -> str:
    """The format of a part, from its name."""
    return next(kind for kind in (OPENAI, PARQUET, JSONL) if part.endswith(_ENDINGS[kind]))

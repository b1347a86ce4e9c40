"""OpenAI batch files: one request per line, with its own URL, parameters and id.

Role: tell such a file and turn one of its rows into an ask. Owns: which URLs and models a request may name.
Must not know: the parameters of a request (the engine answers for those), how answers are written.

    {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...]}}
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from batch_jobs.engines.base import Ask
from batch_jobs.errors import RowError, RowErrorKind
from batch_jobs.input.formats import jsonl_records, parse_json
from batch_jobs.input.locations import InputFile, open_lines
from batch_jobs.input.spec import JobSpec

BATCH_COLUMNS = ("custom_id", "url", "body")
URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
_SAMPLE_LINES = 20


def is_openai_batch(names: Iterable[str]) -> bool:
    """Whether these columns are those of OpenAI batch requests."""
    return set(BATCH_COLUMNS) <= set(names)


def holds_openai_batch(files: Iterable[InputFile]) -> bool:
    """Whether the input is OpenAI batch requests, by the first lines of its first file that has any."""
    for file in files:
        if file.format != "jsonl":
            return False
        with open_lines(file) as stream:
            records = list(itertools.islice(jsonl_records(stream), _SAMPLE_LINES))
        if records:
            return any(is_openai_batch(_columns(record.data)) for record in records)
    return False


def _columns(data: bytes) -> dict[str, Any]:
    try:
        return parse_json(data)
    except RowError:
        return {}


def batch_ask(spec: JobSpec, columns: dict[str, Any]) -> Ask:
    """The request of a row. Raises RowError for one that this job cannot send."""
    if columns.get("custom_id") in (None, ""):
        raise _refused("custom_id is missing: a response cannot be told from others without it")
    method, url, body = columns.get("method", "POST"), columns.get("url"), columns.get("body")
    if not isinstance(method, str) or method.upper() != "POST":
        raise _refused(f"method must be POST, got {method!r}")
    if url not in URLS:
        raise _refused(f"url {url!r} is not served in a batch: use one of {', '.join(URLS)}")
    if not isinstance(body, dict):
        raise _refused(f"body must be an object, got {type(body).__name__}")
    if body.get("stream"):
        raise _refused("stream is set: a batch writes whole responses, leave it out")
    model = body.get("model") or spec.model
    if model != spec.model and model not in spec.adapters:
        known = ", ".join((spec.model, *spec.adapters))
        raise _refused(f"model {model!r} is not what this job runs: name {known}, or leave it out")
    kept = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
    return Ask(url, kept | {"model": model})


def _refused(message: str) -> RowError:
    return RowError(RowErrorKind.INVALID_REQUEST, message)

"""Lines of OpenAI's batch output and error files.

Role: a finished row as one line, and what a line says about its row. Owns: the form, which is OpenAI's
(`BatchRequestOutput` of its API reference). Must not know: files, engines.

    {"id": "batch_req_...", "custom_id": "...", "response": {"status_code", "request_id", "body"} | null,
     "error": {"code", "message"} | null}

A request that was answered, be it with an HTTP error, has a `response`; `error` is for one that got no answer, or one
that the engine broke off.
The form has no place for "copied from another row", which the sums of a rerun must know (its tokens were not computed
again): such a line's `id`, which means nothing to readers, begins with `batch_req_dup_`.
"""

from __future__ import annotations

import uuid
from typing import Any

from batch_jobs.output.parts import Result

_ID = "batch_req_"
_DUPLICATE_ID = "batch_req_dup_"
_HTTP_OK = 200
_HTTP_ERROR = 400


def openai_record(row_id: str, result: Result) -> dict[str, Any]:
    """One line, still as an object."""
    response, error = None, None
    if result.error is None:
        response = _response(_HTTP_OK, result.output)
    elif result.error.get("status", 0) >= _HTTP_ERROR:
        response = _response(result.error["status"], result.error.get("body") or _error_body(result.error))
    else:
        error = {"code": result.error["type"], "message": result.error["message"]}
    prefix = _DUPLICATE_ID if result.duplicate_of is not None else _ID
    return {"id": f"{prefix}{uuid.uuid4().hex}", "custom_id": row_id, "response": response, "error": error}


def _response(status: int, body: Any) -> dict[str, Any]:
    return {"status_code": status, "request_id": f"req_{uuid.uuid4().hex}", "body": body}


def _error_body(error: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"message": error["message"], "type": error["type"], "param": None, "code": None}}


def result_of(record: dict[str, Any]) -> Result:
    """What `openai_record` was made of, as far as a line holds it: not which row a duplicate is of."""
    prompt_tokens, cached_tokens, output_tokens = usage(record)
    kind, response = error_kind(record), record["response"]
    error: dict[str, Any] | None = None
    if response is None:
        error = {"type": kind, "message": record["error"]["message"]}
    elif kind is not None:
        body = response["body"]
        problem = body.get("error") if isinstance(body, dict) else None
        message = str(problem.get("message")) if isinstance(problem, dict) else ""
        error = {"type": kind, "message": message, "status": response["status_code"], "body": body}
    return Result(
        output=response["body"] if error is None else None,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        cached_tokens=cached_tokens,
        duplicate_of="" if is_duplicate(record) else None,
        error=error,
    )


def is_duplicate(record: dict[str, Any]) -> bool:
    return bool(record["id"].startswith(_DUPLICATE_ID))


def error_kind(record: dict[str, Any]) -> str | None:
    """What kind of failure a line is; None for a success."""
    if record["error"] is not None:
        return str(record["error"]["code"])
    response = record["response"]
    if response["status_code"] < _HTTP_ERROR:
        return None
    body = response["body"]
    problem = body.get("error") if isinstance(body, dict) else None
    kind = problem.get("type") or problem.get("code") if isinstance(problem, dict) else None
    return str(kind or f"http_{response['status_code']}")


def usage(record: dict[str, Any]) -> tuple[int, int, int]:
    """Prompt, cached and output tokens that the response says it took."""
    body = (record["response"] or {}).get("body")
    numbers = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(numbers, dict):
        return 0, 0, 0
    # The Responses API calls them input and output; embeddings have no output at all.
    details = numbers.get("prompt_tokens_details") or numbers.get("input_tokens_details") or {}
    return (
        numbers.get("prompt_tokens") or numbers.get("input_tokens") or 0,
        details.get("cached_tokens") or 0,
        numbers.get("completion_tokens") or numbers.get("output_tokens") or 0,
    )

"""An error as a client's API has it: OpenAI's shape, and Anthropic's on its paths.

Anthropic: `{"type": "error", "error": {"type", "message"}}`; its clients know an overloaded service by status 529.

Owns: bodies and statuses on the wire. Must not know: why something failed.
"""

from __future__ import annotations

import orjson

from serve_apps.gateway.doors import RESPONSES_PATH, speaks_anthropic
from serve_apps.gateway.errors import ApiError

OVERLOADED_STATUS = 529
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def as_answer(error: ApiError, path: str) -> tuple[int, bytes]:
    """Status and body of the answer to a request at `path`."""
    if not speaks_anthropic(path):
        return error.status, error.body()
    return OVERLOADED_STATUS if error.status == 503 else error.status, _anthropic(error)


def as_event(error: ApiError, path: str) -> bytes:
    """The last event of a stream that had begun."""
    if speaks_anthropic(path):
        return b"event: error\ndata: " + _anthropic(error) + b"\n\n"
    if path == RESPONSES_PATH:
        # Of its two kinds of clients some go by the type of an event, others raise what has an `error`.
        fields = error.fields()
        return b"event: error\ndata: " + orjson.dumps({**fields, "type": "error", "error": fields}) + b"\n\n"
    return b"data: " + error.body() + b"\n\n"


def _anthropic(error: ApiError) -> bytes:
    other = "invalid_request_error" if error.status < 500 else "api_error"
    kind = _ANTHROPIC_TYPES.get(error.status, other)
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": error.message}})

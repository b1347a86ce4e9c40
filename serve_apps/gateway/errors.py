"""Errors in OpenAI's shape. Owns: status codes, bodies, and the cleaning of engines' own error bodies.

Must not know: why something failed. Shape: `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

import math
from typing import Any

import orjson

from cluster.scheduling import RateLimitState, Refusal
from serve_apps.gateway.limits import rate_limit_headers

_TOO_LONG = ("max_model_len", "context length", "maximum model length")


class ApiError(Exception):
    """An answer that ends a request: status, OpenAI error fields and extra headers."""

    def __init__(
        self,
        status: int,
        code: str | None,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        rate_limits: RateLimitState | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.rate_limits = rate_limits

    @classmethod
    def of_refusal(cls, refusal: Refusal) -> ApiError:
        return cls(
            refusal.status,
            refusal.code,
            refusal.message,
            retry_after_s=refusal.retry_after_s,
            rate_limits=refusal.rate_limits,
        )

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        headers = [(b"content-type", b"application/json")]
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(math.ceil(self.retry_after_s)).encode()))
            headers.append((b"retry-after-ms", str(math.ceil(self.retry_after_s * 1000)).encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers + rate_limit_headers(self.rate_limits)

    def body(self) -> bytes:
        return orjson.dumps({"error": self.fields()})

    def fields(self) -> dict[str, Any]:
        kind = _type_of(self.status)
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}


def _type_of(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def require_method(method: str, allowed: str) -> None:
    """Raises ApiError 405."""
    if method != allowed:
        raise ApiError(405, "method_not_allowed", f"use {allowed} here, not {method}")


def engine_error(status: int, body: bytes, path: str) -> ApiError:
    """An engine's error answer to a request at `path`, in OpenAI's shape.

    vLLM nests the fields under `error`, SGLang puts them at the top and adds its source file; both put the status where
    OpenAI has a code.
    """
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        parsed = {}
    fields = parsed.get("error", parsed) if isinstance(parsed, dict) else {}
    if not isinstance(fields, dict):
        fields = {"message": str(fields)}
    said = fields.get("message")
    if status == 501 or (status in (404, 405) and said in (None, "Not Found", "Method Not Allowed")):
        # The server's own page for a route that it does not have, or does not have for this model.
        why = f" ({said})" if status == 501 and said else ""
        message = f"the engine has no {path} for this model{why}: use a model made for it, or have it on another engine"
        return ApiError(404, "unsupported_by_engine", message)
    message = str(said or fields.get("detail") or f"the engine answered {status}")
    message = message.split("\n\n  File ", 1)[0].strip()
    code = fields.get("code") if isinstance(fields.get("code"), str) else None
    if status == 400 and any(mark in message for mark in _TOO_LONG):
        code = "context_length_exceeded"
    param = fields.get("param")
    return ApiError(status, code, message, param=param if isinstance(param, str) else None)

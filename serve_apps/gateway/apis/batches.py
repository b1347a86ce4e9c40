"""`/v1/batches`: OpenAI's Batch API. A batch is in the state store before the 2xx goes out; a worker does the rest.

Owns: the HTTP side of batches. Must not know: how a batch is carried out (serve_apps/deferred).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Any

import orjson

from cluster.config.services import BatchesConfig
from cluster.state.deferred import DeferredStore
from cluster.state.deferred_batches import Batch, InputGoneError, TooManyBatchesError
from cluster.state.ids import is_id, new_id
from serve_apps.gateway.apis.files import FILE_KIND, no_such_file
from serve_apps.gateway.apis.pages import after_of, lifetime_of, limit_of, page, query_of
from serve_apps.gateway.apis.stores import answered_when_away
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.errors import ApiError
from serve_apps.gateway.http import JSON_HEADERS, Receive, Scope, Send, header, read_body, send_response
from serve_apps.gateway.request import json_object

BATCH_KIND = "batch_"
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
MAX_BODY_BYTES = 256 * 1024
MAX_PAGE, DEFAULT_PAGE = 100, 20
MIN_WINDOW_S, MAX_WINDOW_S = 1, 7 * 86400
_WINDOW = re.compile(r"(\d{1,7})([smhd])")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class BatchesApi:
    """Create, look up, list and cancel batches."""

    def __init__(self, config: BatchesConfig, deferred: DeferredStore) -> None:
        self._config = config
        self._files = deferred.files
        self._book = deferred.batches

    async def __call__(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        with answered_when_away():
            await self._answer(caller, scope, receive, send)

    async def _answer(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["path"].removeprefix("/v1/batches").strip("/").split("/"), scope["method"]:
            case [""], "POST":
                raw = await read_body(header(scope, b"content-length"), receive, MAX_BODY_BYTES)
                batch = await self._create(caller, raw)
                await _send(send, batch)
            case [""], "GET":
                await send_response(send, 200, JSON_HEADERS, await self._page(caller, scope))
            case [batch_id], "GET":
                _require_id(batch_id)
                await _send(send, _found(await asyncio.to_thread(self._book.get, caller.tenant, batch_id), batch_id))
            case [batch_id, "cancel"], "POST":
                await _send(send, await self._cancel(caller, batch_id))
            case [""] | [_] | [_, "cancel"], method:
                raise ApiError(405, "method_not_allowed", f"{method} is not allowed on {scope['path']}")
            case _:
                raise ApiError(404, "unknown_url", f"unknown path {scope['path']}")

    async def _create(self, caller: Caller, raw: bytes) -> Batch:
        now_s = time.time()
        batch = _asked(raw, caller, now_s)
        source = None
        if is_id(FILE_KIND, batch.input_file_id):
            source = await asyncio.to_thread(self._files.get, caller.tenant, batch.input_file_id, now_s)
        if source is None:
            raise no_such_file(batch.input_file_id, "input_file_id")
        if source.purpose != "batch":
            message = f"{source.id} was uploaded for the purpose {source.purpose!r}: upload it for `batch`"
            raise ApiError(400, "invalid_value", message, param="input_file_id")
        try:
            await asyncio.to_thread(self._book.create, batch, self._config.max_unfinished)
        except InputGoneError:
            raise no_such_file(batch.input_file_id, "input_file_id") from None
        except TooManyBatchesError:
            message = f"you have {self._config.max_unfinished} unfinished batches, the most that one tenant may have"
            raise ApiError(429, "too_many_batches", message, retry_after_s=60.0) from None
        return batch

    async def _page(self, caller: Caller, scope: Scope) -> bytes:
        query = query_of(scope)
        limit = limit_of(query, DEFAULT_PAGE, MAX_PAGE)
        after = after_of(query, BATCH_KIND)
        found = await asyncio.to_thread(self._book.page, caller.tenant, after=after, limit=limit + 1)
        return page([batch_object(batch) for batch in found], limit)

    async def _cancel(self, caller: Caller, batch_id: str) -> Batch:
        _require_id(batch_id)
        batch = _found(await asyncio.to_thread(self._book.cancel, caller.tenant, batch_id, time.time()), batch_id)
        if batch.status not in ("cancelling", "cancelled"):
            message = f"Cannot cancel a batch with status {batch.status!r}"
            raise ApiError(409, "invalid_batch_status", message)
        return batch


def batch_object(batch: Batch) -> dict[str, Any]:
    """A batch as OpenAI's clients know it."""
    times = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled", "expires")
    problems = None if batch.problems is None else {"object": "list", "data": batch.problems}
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": problems,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": int(batch.created_at_s),
        **{f"{name}_at": _whole(getattr(batch, f"{name}_at_s")) for name in times},
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": {
            "input_tokens": batch.input_tokens,
            "input_tokens_details": {"cached_tokens": batch.cached_tokens},
            "output_tokens": batch.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": batch.input_tokens + batch.output_tokens,
        },
        "metadata": batch.extra,
    }


def window_s(text: object) -> int:
    """Seconds of a completion window such as "24h", "30m" or "90s". Raises ApiError 400."""
    found = _WINDOW.fullmatch(text) if isinstance(text, str) and text.isascii() else None
    seconds = int(found[1]) * _UNITS_S[found[2]] if found else 0
    if not MIN_WINDOW_S <= seconds <= MAX_WINDOW_S:
        message = 'completion_window must be a number and a unit, from 1s to 7d: "24h", "30m", "90s"'
        raise ApiError(400, "invalid_value", message, param="completion_window")
    return seconds


def _asked(raw: bytes, caller: Caller, now_s: float) -> Batch:
    """The batch that a body asks for. Raises ApiError 400."""
    body = json_object(raw)
    for name in ("input_file_id", "endpoint", "completion_window"):
        if body.get(name) is None:
            raise ApiError(400, "missing_required_parameter", f"the body needs a `{name}`", param=name)
    if not isinstance(body["input_file_id"], str):
        raise ApiError(400, "invalid_type", "input_file_id must be a text", param="input_file_id")
    if body["endpoint"] not in ENDPOINTS:
        message = f"unknown endpoint {str(body['endpoint'])[:64]!r}; use one of {', '.join(ENDPOINTS)}"
        raise ApiError(400, "invalid_value", message, param="endpoint")
    policy = body.get("output_expires_after")
    if policy is not None and not isinstance(policy, dict):
        raise ApiError(400, "invalid_type", "output_expires_after must be an object", param="output_expires_after")
    return Batch(
        id=new_id(BATCH_KIND, now_s),
        tenant=caller.tenant,
        key_id=caller.key_id,
        endpoint=body["endpoint"],
        input_file_id=body["input_file_id"][:64],
        completion_window=body["completion_window"],
        status="validating",
        created_at_s=now_s,
        expires_at_s=now_s + window_s(body["completion_window"]),
        extra=_metadata(body.get("metadata")),
        output_expires_after_s=lifetime_of(policy or {}, "output_expires_after"),
    )


def _metadata(given: object) -> dict[str, str] | None:
    """OpenAI's bounds: 16 pairs, keys of 64 and values of 512 characters."""
    if given is None:
        return None
    if not isinstance(given, Mapping) or len(given) > 16:
        raise ApiError(400, "invalid_value", "metadata must be an object of at most 16 pairs", param="metadata")
    for key, value in given.items():
        if not isinstance(value, str) or len(value) > 512 or len(key) > 64 or "\0" in key + value:
            message = f"metadata {key[:64]!r}: keys have at most 64 characters, values are texts of at most 512"
            raise ApiError(400, "invalid_value", message, param="metadata")
    return dict(given)


def _require_id(batch_id: str) -> None:
    """What cannot be an id is not looked up: a database may not even take its text."""
    if not is_id(BATCH_KIND, batch_id):
        raise _no_such_batch(batch_id)


def _found(batch: Batch | None, batch_id: str) -> Batch:
    if batch is None:
        raise _no_such_batch(batch_id)
    return batch


def _no_such_batch(batch_id: str) -> ApiError:
    return ApiError(404, "batch_not_found", f"No batch found with id '{batch_id[:64]}'.", param="batch_id")


def _whole(at_s: float | None) -> int | None:
    return None if at_s is None else int(at_s)


async def _send(send: Send, batch: Batch) -> None:
    await send_response(send, 200, JSON_HEADERS, orjson.dumps(batch_object(batch)))

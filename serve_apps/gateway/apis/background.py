"""Background requests over HTTP: accept now, run later, ask by id, cancel, delete.

`/v1/responses` with `background: true` as OpenAI has it; `/v1/chat/completions` with it is an extension of the same
form. A request is accepted when its row is committed, and only then answered. Ids of other tenants are unknown ids.

Owns: what these paths answer. Must not know: who runs the requests, routes of other APIs.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any, NamedTuple

import orjson

from cluster.config.services import BatchesConfig
from cluster.state.deferred import BackgroundRow, DeferredStore, TooManyBackgroundError
from cluster.state.ids import is_id
from serve_apps.gateway.apis import chat_objects, responses
from serve_apps.gateway.apis.stores import answered_when_away
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.doors import CHAT_PATH, RESPONSES_PATH
from serve_apps.gateway.errors import ApiError, require_method
from serve_apps.gateway.request import GenerationRequest
from serve_apps.gateway.splice import written

LIFE_S = 24 * 3600.0
"""From acceptance on: what has not run by then ends as incomplete."""
RETRY_AFTER_S = 10.0
_KINDS = {RESPONSES_PATH: responses, CHAT_PATH: chat_objects}


class Place(NamedTuple):
    """One stored request in the URL space: `{path}/{id}` or `{path}/{id}/{action}`."""

    path: str
    id: str
    action: str


def place_of(path: str) -> Place | None:
    """What a URL says about a background request; None when it is about something else."""
    for base in _KINDS:
        if path.startswith(base + "/"):
            id, _, action = path[len(base) + 1 :].partition("/")
            if id and action in ("", "cancel"):
                return Place(base, id, action)
    return None


class Background:
    """The API's side of the rows; a worker runs them."""

    def __init__(self, config: BatchesConfig, rows: DeferredStore) -> None:
        self._config = config
        self._rows = rows

    async def accept(self, request: GenerationRequest, raw: bytes, caller: Caller) -> tuple[int, bytes]:
        """Status and body of the first answer. Raises ApiError where there can be no answer later."""
        if request.deadline_at_s is not None:
            message = "`x-deadline-ms` does not go with `background`: nobody waits for the answer"
            raise ApiError(400, "unsupported_parameter", message, param="x-deadline-ms")
        if len(raw) > self._config.max_background_bytes:
            # A row of the database holds it, which is no place for what a file of a batch may be.
            message = f"a background request has at most {self._config.max_background_bytes} bytes: send it as a batch"
            raise ApiError(413, "request_too_large", message)
        kind = _KINDS[request.path]
        row_id, now_s = kind.ID_PREFIX + uuid.uuid4().hex, time.time()
        row = BackgroundRow(row_id, caller.tenant, request.path, raw, "queued", None, None, now_s, None)
        answer = written(kind.as_object(row))  # before it is accepted: what it echoes may be too deep to be written
        place = (caller.tenant, caller.key_id, request.path, raw, request.request_class)
        most = self._config.max_background
        try:
            with answered_when_away():
                await asyncio.to_thread(self._rows.create_background, row_id, *place, now_s, now_s + LIFE_S, most)
        except TooManyBackgroundError:
            message = f"you have {most} unfinished background requests, the most that one tenant may have"
            raise ApiError(429, "too_many_background_requests", message, retry_after_s=RETRY_AFTER_S) from None
        return kind.ACCEPTED_STATUS, answer

    async def answer(self, method: str, place: Place, query: bytes, caller: Caller) -> bytes:
        """The body for a request about a stored one; raises ApiError 404 for ids that the tenant does not have."""
        with answered_when_away():
            return orjson.dumps(await self._answer(method, place, query, caller))

    async def _answer(self, method: str, place: Place, query: bytes, caller: Caller) -> dict[str, Any]:
        kind = _KINDS[place.path]
        row = None
        if is_id(kind.ID_PREFIX, place.id):  # a database may not even take the text of what is none
            row = await asyncio.to_thread(self._rows.get_background, caller.tenant, place.id)
        if row is None or row.path != place.path:
            raise ApiError(404, None, f"{kind.NOUN} with id {place.id[:80]!r} not found", param="id")
        if place.action == "cancel":
            require_method(method, "POST")
            row = await asyncio.to_thread(self._rows.cancel_background, caller.tenant, place.id) or row
        elif method == "DELETE":
            await asyncio.to_thread(self._rows.delete_background, caller.tenant, place.id)
            return {"id": place.id, "object": kind.DELETED_OBJECT, "deleted": True}
        else:
            require_method(method, "GET")
            if b"stream=true" in query.lower().split(b"&"):
                message = "a background request cannot be read as a stream: ask again until its status says it ended"
                raise ApiError(400, "unsupported_parameter", message, param="stream")
        return kind.as_object(row)

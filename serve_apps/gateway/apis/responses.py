"""The object of `/v1/responses` for a background request, as OpenAI's client reads it.

Once the engine has answered, it is the engine's object under the id that the client was given. Owns: the object's
shape. Must not know: HTTP, the store.
"""

from __future__ import annotations

from typing import Any

import orjson

from cluster.state.deferred import BackgroundRow
from serve_apps.gateway.apis.stored import engine_object, failure

ID_PREFIX = "resp_"
NOUN = "Response"
ACCEPTED_STATUS = 200
DELETED_OBJECT = "response"
_ENGINE_STATUSES = ("completed", "incomplete", "failed")
_ECHOED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": None,
    "service_tier": "auto",
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
"""Fields of the request that the object repeats, and what they are when the request leaves them out."""


def as_object(row: BackgroundRow) -> dict[str, Any]:
    """The response as it stands."""
    ended = engine_object(row)
    if ended is not None:
        status = ended.get("status") if ended.get("status") in _ENGINE_STATUSES else "completed"
        return {**ended, "id": row.id, "status": status, "background": True}
    asked = orjson.loads(row.body)
    expired = {"reason": "expired"} if row.status == "incomplete" else None
    return {
        "id": row.id,
        "object": "response",
        "created_at": int(row.created_at_s),
        "status": row.status,
        "background": True,
        "model": asked["model"],
        "error": failure(row),
        "incomplete_details": expired,
        "output": [],
        "usage": None,
        "previous_response_id": None,
        **{name: default if asked.get(name) is None else asked[name] for name, default in _ECHOED.items()},
    }

"""The object of a chat completion that runs in the background (an extension): a note until it has ended well, then
the chat completion itself, under the id that the client was given.

Owns: the object's shape. Must not know: HTTP, the store.
"""

from __future__ import annotations

from typing import Any

import orjson

from cluster.state.deferred import BackgroundRow
from serve_apps.gateway.apis.stored import engine_object, failure

ID_PREFIX = "chatcmpl-"
NOUN = "Chat completion"
ACCEPTED_STATUS = 202
DELETED_OBJECT = "chat.completion.deleted"


def as_object(row: BackgroundRow) -> dict[str, Any]:
    """The chat completion, or how far it is."""
    ended = engine_object(row)
    if ended is not None:
        return {**ended, "id": row.id}
    return {
        "id": row.id,
        "object": "chat.completion.background",
        "status": row.status,
        "created": int(row.created_at_s),
        "finished_at": None if row.finished_at_s is None else int(row.finished_at_s),
        "model": orjson.loads(row.body)["model"],
        "error": failure(row),
    }

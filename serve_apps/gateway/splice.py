"""Fields set in and taken out of a client's body before the engine gets it.

Spliced where possible: the client's own bytes then stay as they are. A body that already has one of the fields is
written anew, because of two members of one name some parsers take the first and some the last.

Owns: the bytes. Must not know: which fields, and why.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import orjson

from serve_apps.gateway.errors import ApiError


def with_fields(
    raw: bytes, parsed: Mapping[str, Any], fields: Mapping[str, Any], dropped: Collection[str] = ()
) -> bytes:
    """The object `raw` (parsed: `parsed`, with at least one member that stays) with `fields` and without `dropped`."""
    if not (parsed.keys().isdisjoint(fields) and parsed.keys().isdisjoint(dropped)):
        kept = {name: value for name, value in parsed.items() if name not in dropped}
        return written({**kept, **fields})
    if not fields:
        return raw
    start = raw.index(b"{") + 1
    return raw[:start] + orjson.dumps(fields)[1:-1] + b"," + raw[start:]


def written(body: Mapping[str, Any]) -> bytes:
    """Raises ApiError 400: what can be read may be nested deeper than what can be written."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise ApiError(400, "invalid_json", f"the body cannot be passed on: {error}") from None

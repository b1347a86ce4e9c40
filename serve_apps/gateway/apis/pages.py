"""Query parameters and pages of lists, as OpenAI's cursor pagination has them. Must not know: what is listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

import orjson

from cluster.state.ids import is_id
from serve_apps.gateway.errors import ApiError
from serve_apps.gateway.http import Scope


def query_of(scope: Scope) -> dict[str, str]:
    """The query's parameters; the last one of a name counts."""
    return dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True))


def limit_of(query: Mapping[str, str], default: int, most: int) -> int:
    text = query.get("limit", str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= most:
        raise ApiError(400, "invalid_value", f"limit must be 1 to {most}, not {text[:20]!r}", param="limit")
    return int(text)


def after_of(query: Mapping[str, str], kind: str) -> str | None:
    """The id to go on behind. It need not exist any more: ids are sorted by time."""
    after = query.get("after")
    if after is not None and not is_id(kind, after):
        raise ApiError(
            400, "invalid_value", f"after must be an id of an earlier page, not {after[:64]!r}", param="after"
        )
    return after


def page(items: Sequence[Mapping[str, Any]], limit: int) -> bytes:
    """A page of a list of which one item more than `limit` was read, if there is one."""
    shown = items[:limit]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return orjson.dumps({"object": "list", "data": shown, **ends, "has_more": len(items) > limit})


def lifetime_of(fields: Mapping[str, Any], name: str) -> int | None:
    """Seconds of an expiry policy `{"anchor": "created_at", "seconds": N}`; None when there is none."""
    if not fields:
        return None
    anchor, seconds = fields.get("anchor"), fields.get("seconds")
    if anchor != "created_at":
        raise ApiError(
            400, "invalid_value", f"{name}.anchor must be created_at, not {anchor!r}", param=f"{name}.anchor"
        )
    if isinstance(seconds, str) and seconds.isascii() and seconds.isdigit() and len(seconds) < 12:
        seconds = int(seconds)
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 3600 <= seconds <= 2592000:
        message = f"{name}.seconds must be 3600 (an hour) to 2592000 (30 days), not {seconds!r}"
        raise ApiError(400, "invalid_value", message, param=f"{name}.seconds")
    return seconds

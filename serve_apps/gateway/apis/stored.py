"""What a stored background request ended with. Owns: reading the answer that its worker kept.

Must not know: the objects of the APIs, HTTP.
"""

from __future__ import annotations

from typing import Any

import orjson

from cluster.state.deferred import BackgroundRow


def engine_object(row: BackgroundRow) -> dict[str, Any] | None:
    """The engine's answer, if the request ended well."""
    return _parsed(row.response) if row.status == "completed" else None


def failure(row: BackgroundRow) -> dict[str, str] | None:
    """Why the request ended badly: `code` and `message`."""
    if row.status != "failed":
        return None
    error = (_parsed(row.response) or {}).get("error")
    fields = error if isinstance(error, dict) else {}
    code = "server_error" if (row.http_status or 500) >= 500 else "invalid_request"
    message = fields.get("message") or f"the request ended with status {row.http_status}"
    return {"code": str(fields.get("code") or code), "message": str(message)}


def _parsed(body: bytes | None) -> dict[str, Any] | None:
    try:
        parsed = orjson.loads(body or b"")
    except orjson.JSONDecodeError:
        return None
    return parsed if isinstance(parsed, dict) else None

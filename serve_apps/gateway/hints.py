"""What a client says about a request beside the prompt: its conversation, its program, its deadline.

Names are hashed: they stay in memory long after the request, and a client may send a very long or private one.
Owns: reading them. Must not know: what is done with them.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from serve_apps.gateway.errors import ApiError


@dataclass(frozen=True, slots=True)
class Hints:
    """What a client says about a request beside the body, as the header values."""

    session: bytes | None = None
    """`x-session-id`: the conversation that the request belongs to."""
    program: bytes | None = None
    """`x-program-id`: the program (agent run, pipeline) that the request belongs to."""
    deadline_ms: bytes | None = None
    """`x-deadline-ms`: milliseconds from now until the answer is of no use."""


def session_of(parsed: Mapping[str, Any], messages: Any, hints: Hints) -> str | None:
    """What ties the turns of a conversation together: named by the client, else its leading messages."""
    for named in (parsed.get("prompt_cache_key"), hints.session, parsed.get("user")):
        if named:
            return _digest(named if isinstance(named, bytes) else str(named).encode())
    if not isinstance(messages, list) or not messages:
        return None
    # Up to the first user message: the part that stays the same as the conversation grows.
    roles = [m.get("role") if isinstance(m, Mapping) else None for m in messages]
    head = messages[: roles.index("user") + 1] if "user" in roles else messages[:1]
    try:
        return _digest(orjson.dumps(head))
    except orjson.JSONEncodeError:  # nested deeper than it writes
        return None


def program_of(parsed: Mapping[str, Any], hints: Hints) -> str | None:
    """The level of fair sharing below the key, as the client names it."""
    if hints.program:
        return _digest(hints.program)
    metadata = parsed.get("metadata")
    named = metadata.get("program_id") if isinstance(metadata, Mapping) else None
    return _digest(named.encode()) if isinstance(named, str) and named else None


def deadline_of(hints: Hints) -> float | None:
    """Wall clock. Raises ApiError 400 for a header that is no time."""
    if hints.deadline_ms is None:
        return None
    try:
        milliseconds = float(hints.deadline_ms)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds < math.inf:
        message = "`x-deadline-ms` must be the milliseconds from now until the answer is of no use, as in 1500"
        raise ApiError(400, "invalid_deadline", message, param="x-deadline-ms")
    return time.time() + milliseconds / 1000


def _digest(name: bytes) -> str:
    return hashlib.blake2b(name, digest_size=12).hexdigest()

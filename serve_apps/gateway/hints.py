"""What a client says about a request beside the prompt: its conversation, its program, its deadline.

Names are hashed: they stay in memory long after the request, and a client may send a very long or private one.
Owns: reading them. Must not know: what is done with them.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from serve_apps.gateway.errors import ApiError


class Hints(NamedTuple):
    """What a client says about a request beside the body, as the header values."""

    session: bytes | None = None
    """`x-session-id`: the conversation that the request belongs to."""
    program: bytes | None = None
    """`x-program-id`: the program (agent run, pipeline) that the request belongs to."""
    deadline_ms: bytes | None = None
    """`x-deadline-ms`: milliseconds from now until the answer is of no use."""


def session_of(parsed: Mapping[str, Any], messages: Any, hints: Hints) -> str | None:
    """What ties the turns of a conversation together: named by the client, else its leading messages."""
    named = named_session(parsed.get("prompt_cache_key"), hints.session, parsed.get("user"))
    if named is not None:
        return named
    turn = first_turn(messages)
    return session_of_messages(turn) if turn else None


def named_session(*names: Any) -> str | None:
    """The session that the first name which is not empty stands for."""
    for name in names:
        if name:
            return _digest(name if isinstance(name, bytes) else str(name).encode())
    return None


def first_turn(messages: Any) -> list[Any]:
    """Up to the first user message: the part that stays the same as the conversation grows."""
    if not isinstance(messages, list):
        return []
    for position, message in enumerate(messages, 1):
        if isinstance(message, dict) and message.get("role") == "user":
            return messages[:position]
    return messages[:1]


def session_of_messages(messages: list[Any]) -> str | None:
    try:
        return _digest(orjson.dumps(messages))
    except orjson.JSONEncodeError:  # nested deeper than it writes
        return None


def program_of(parsed: Mapping[str, Any], hints: Hints) -> str | None:
    """The level of fair sharing below the key, as the client names it."""
    if hints.program:
        return _digest(hints.program)
    metadata = parsed.get("metadata")
    named = metadata.get("program_id") if isinstance(metadata, dict) else None
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

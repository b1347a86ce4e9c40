"""Anthropic's `/v1/messages`, as far as the gateway reads it: tier, session, usage, the events of a stream.

Owns: what differs from OpenAI's API in requests and answers. Must not know: errors' shape (error_shapes.py), leases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from cluster.scheduling import TokenUsage
from cluster.vocabulary import SERVICE_TIERS
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.errors import ApiError
from serve_apps.gateway.hints import Hints, first_turn, named_session, session_of_messages
from serve_apps.gateway.sse import whole_events

STANDARD_ONLY = "standard_only"
_END = b"\n\n"
_DATA = b"data: "
_DELTA = b"event: content_block_delta\n"
_START = b"event: message_start\n"
_LAST = b"event: message_delta\n"


def asked_tier(parsed: Mapping[str, Any], caller: Caller) -> str:
    """`auto` is the tenant's own tier, `standard_only` the same but never `priority`; our own are an extension."""
    tier = parsed.get("service_tier")
    if tier is None or tier == "auto":
        return caller.default_tier
    if tier == STANDARD_ONLY:
        return "default" if caller.default_tier == "priority" else caller.default_tier
    if tier not in SERVICE_TIERS:
        known = ", ".join((STANDARD_ONLY, *SERVICE_TIERS))
        message = f"unknown service_tier {tier!r}; use one of {known}"
        raise ApiError(400, "invalid_service_tier", message, param="service_tier")
    return str(tier)


def session_of(parsed: Mapping[str, Any], hints: Hints) -> str | None:
    """What ties the turns of a conversation together: named by the client, else its system prompt and first turn."""
    metadata = parsed.get("metadata")
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    named = named_session(hints.session, user)
    if named is not None:
        return named
    turn = first_turn(parsed.get("messages"))
    if not turn:
        return None
    return session_of_messages([_unmarked(parsed.get("system")), *map(_unmarked_message, turn)])


def _unmarked_message(message: Any) -> Any:
    return {**message, "content": _unmarked(message.get("content"))} if isinstance(message, dict) else message


def _unmarked(content: Any) -> Any:
    """Without `cache_control`, which clients move on to the newest block in every turn."""
    if not isinstance(content, list):
        return content
    return [{k: v for k, v in b.items() if k != "cache_control"} if isinstance(b, dict) else b for b in content]


def read_usage(usage: Any) -> TokenUsage | None:
    """Anthropic's usage object. Its `input_tokens` are those that no cache had."""
    if not isinstance(usage, dict):
        return None
    cached = _count(usage, "cache_read_input_tokens")
    prompt = _count(usage, "input_tokens") + cached + _count(usage, "cache_creation_input_tokens")
    return TokenUsage(prompt, cached, _count(usage, "output_tokens"))


def _count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) else 0


class MessageEventStream:
    """Events of `/v1/messages`: nothing is changed in them. Some engines tell the prompt's tokens in the first event
    and only the output's in the last, others all of them in the last.
    """

    __slots__ = ("_carry", "_told", "output_tokens", "usage")

    def __init__(self) -> None:
        self._carry = b""
        self._told: dict[str, Any] = {}
        self.output_tokens = 0
        """Pieces of output seen, which is about the tokens produced; the usage at the end is exact."""
        self.usage: TokenUsage | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Bytes in, bytes for the client out: everything up to the last complete event."""
        block, self._carry = whole_events(self._carry, chunk)
        self.output_tokens += block.count(_DELTA)
        if _LAST in block or _START in block:
            self._read_usage(block)
        return block

    def rest(self) -> bytes:
        """What came after the last complete event (an engine that ended mid-event)."""
        return self._carry

    def _read_usage(self, block: bytes) -> None:
        for event in block.split(_END):
            head, _, data = event.partition(_DATA)
            if head not in (_START, _LAST):
                continue
            try:
                parsed = orjson.loads(data)
            except orjson.JSONDecodeError:
                continue
            holder = parsed.get("message") if isinstance(parsed, dict) and head == _START else parsed
            told = holder.get("usage") if isinstance(holder, dict) else None
            if isinstance(told, dict):
                self._told.update((name, value) for name, value in told.items() if value is not None)
                if head == _LAST:
                    self.usage = read_usage(self._told)

"""The engine's answer on its way to the client: bytes pass as they are, but for the tier that served them.

Owns: patching `service_tier` into a body or first event, finding the usage, dropping a usage event nobody asked for.
Must not know: connections, leases. No event is parsed but the one with the usage.
"""

from __future__ import annotations

from typing import Any

import orjson

from cluster.scheduling import TokenUsage

_END = b"\n\n"
_DATA = b"data: "
_ERROR = b'data: {"error"'
_NO_CHOICES = b'"choices":[]'
_USAGE = b'"usage":{'
_NULL_TIER = b'"service_tier":null'
_DELTA = b".delta\n"
_LAST_EVENTS = (b"event: response.completed\n", b"event: response.incomplete\n", b"event: response.failed\n")


def patch_tier(body: bytes, tier: str | None) -> bytes:
    """Set the top-level `service_tier` of the first JSON object in `body` (one that is absent or null).

    `tier` None: a class without a tier that clients know; the engine's word stays.

    In JSON text an unescaped `"service_tier":null` can only be a key, never part of a string.
    """
    if tier is None:
        return body
    field = b'"service_tier":"' + tier.encode() + b'"'
    if _NULL_TIER in body:
        return body.replace(_NULL_TIER, field, 1)
    start = body.find(b"{")
    if start < 0 or b'"service_tier":"' in body:
        return body
    rest = body[start + 1 :]
    separator = b"" if rest.lstrip()[:1] == b"}" else b","
    return body[: start + 1] + field + separator + rest


def read_usage(usage: Any) -> TokenUsage | None:
    """OpenAI's usage object (of chat, completions, embeddings or responses) as tokens."""
    if not isinstance(usage, dict):
        return None
    prompt = usage.get("prompt_tokens", usage.get("input_tokens")) or 0
    output = usage.get("completion_tokens", usage.get("output_tokens")) or 0
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    cached = details.get("cached_tokens") or 0 if isinstance(details, dict) else 0
    return TokenUsage(int(prompt), min(int(cached), int(prompt)), int(output))


def body_usage(body: bytes) -> TokenUsage | None:
    """The usage of a complete (not streamed) answer."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return read_usage(parsed.get("usage")) if isinstance(parsed, dict) else None


def whole_events(carry: bytes, chunk: bytes) -> tuple[bytes, bytes]:
    """Everything up to the last complete event, and what came after it."""
    data = carry + chunk if carry else chunk
    end = data.rfind(_END)
    if end < 0:
        return b"", data
    end += len(_END)
    return (data, b"") if end == len(data) else (data[:end], data[end:])


class EventStream:
    """Server-sent events from an engine to a client, whole events at a time."""

    __slots__ = ("_carry", "_keep_usage", "_patched", "_tier", "output_tokens", "usage")

    def __init__(self, tier: str | None, keep_usage: bool) -> None:
        self._tier = tier
        self._keep_usage = keep_usage
        self._carry = b""
        self._patched = False
        self.output_tokens = 0
        """Events seen, which is about the tokens produced; the usage at the end is exact."""
        self.usage: TokenUsage | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Bytes in, bytes for the client out: everything up to the last complete event."""
        block, self._carry = whole_events(self._carry, chunk)
        if not block:
            return b""
        self.output_tokens += block.count(_END)
        if not self._patched:
            block = self._patch_first(block)
        if _NO_CHOICES in block and _USAGE in block:
            block = self._take_usage(block)
        return block

    def rest(self) -> bytes:
        """What came after the last complete event (an engine that ended mid-event)."""
        return self._carry

    def _patch_first(self, block: bytes) -> bytes:
        first = block.find(_END)
        self._patched = True
        if block.startswith(_ERROR):  # no answer: nothing served it
            return block
        return patch_tier(block[:first], self._tier) + block[first:]

    def _take_usage(self, block: bytes) -> bytes:
        kept = []
        for event in block.split(_END):
            if _NO_CHOICES in event and _USAGE in event and event.startswith(_DATA):
                usage = body_usage(event[len(_DATA) :])
                self.usage = usage or self.usage
                if usage is not None and not self._keep_usage:
                    continue
            kept.append(event)
        return _END.join(kept)


class ResponseEventStream:
    """Events of `/v1/responses`: nothing is changed in them; the last one has the whole response and its usage."""

    __slots__ = ("_carry", "output_tokens", "usage")

    def __init__(self) -> None:
        self._carry = b""
        self.output_tokens = 0
        """Pieces of output seen, which is about the tokens produced; the usage at the end is exact."""
        self.usage: TokenUsage | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Bytes in, bytes for the client out: everything up to the last complete event."""
        block, self._carry = whole_events(self._carry, chunk)
        self.output_tokens += block.count(_DELTA)
        if any(mark in block for mark in _LAST_EVENTS):
            self._read_usage(block)
        return block

    def rest(self) -> bytes:
        """What came after the last complete event (an engine that ended mid-event)."""
        return self._carry

    def _read_usage(self, block: bytes) -> None:
        for event in block.split(_END):
            head, _, data = event.partition(_DATA)
            if head in _LAST_EVENTS:
                try:
                    response = orjson.loads(data).get("response")
                except (orjson.JSONDecodeError, AttributeError):
                    continue
                self.usage = read_usage(response.get("usage") if isinstance(response, dict) else None) or self.usage

"""Role: the bytes of a scripted engine's `/v1/messages`, shaped as vLLM's: the message and the events of its stream.

Owns: JSON bodies and server-sent events of that one endpoint, and its requests as chat requests.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from tests.support.scripted_script import BadRequestError, Plan

_counter = itertools.count(1)


def as_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """The request as one for `/v1/chat/completions`."""
    if not isinstance(body.get("max_tokens"), int):
        raise BadRequestError("max_tokens: Field required", "max_tokens")
    messages = body.get("messages")
    system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    whole = [*system, *messages] if isinstance(messages, list) else messages
    return {**body, "messages": whole, "stop": body.get("stop_sequences")}


def error_body(kind: str, message: str) -> bytes:
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})


class MessagesWire:
    """The format of `/v1/messages` for one model name."""

    def __init__(self, model: str) -> None:
        self._model = model

    def new_id(self) -> bytes:
        return b"msg_%012x" % next(_counter)

    def whole(self, request_id: bytes, plan: Plan) -> bytes:
        text = [{"type": "text", "text": "".join(plan.words)}]
        ended = {"stop_reason": _stop_reason(plan), "stop_sequence": None, "usage": _usage(plan, len(plan.words))}
        return orjson.dumps({**self._message(request_id), "content": text, **ended})

    def events(self, request_id: bytes, plan: Plan) -> Iterator[bytes]:
        """One item a token, then one for the end. The first event counts the whole prompt, the last what was cached."""
        begun = {"input_tokens": plan.prompt_tokens, "output_tokens": 0}
        message = {**self._message(request_id), "content": [], "stop_reason": None, "usage": begun}
        start = _event("message_start", message=message)
        start += _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        for word in plan.words:
            yield start + _event("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
            start = b""
        end = {"stop_reason": _stop_reason(plan), "stop_sequence": None}
        yield start + b"".join(
            (
                _event("content_block_stop", index=0),
                _event("message_delta", delta=end, usage=_usage(plan, len(plan.words))),
                _event("message_stop"),
            )
        )

    def _message(self, request_id: bytes) -> dict[str, Any]:
        return {"id": request_id.decode(), "type": "message", "role": "assistant", "model": self._model}


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def _usage(plan: Plan, output_tokens: int) -> dict[str, int]:
    return {
        "input_tokens": plan.prompt_tokens - plan.cached_tokens,
        "cache_read_input_tokens": plan.cached_tokens,
        "output_tokens": output_tokens,
    }


def _stop_reason(plan: Plan) -> str:
    return "max_tokens" if plan.finish_reason == "length" else "end_turn"

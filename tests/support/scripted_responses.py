"""Role: the bytes of a scripted engine's `/v1/responses`, shaped as vLLM's: the response object and its events.

Owns: JSON bodies and server-sent events of that one endpoint.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import orjson

from tests.support.scripted_script import Plan

_counter = itertools.count(1)


class ResponsesWire:
    """The format of `/v1/responses` for one model name."""

    def __init__(self, model: str) -> None:
        self._model = model

    def new_id(self) -> bytes:
        return b"resp_%012x" % next(_counter)

    def whole(self, request_id: bytes, plan: Plan) -> bytes:
        return orjson.dumps(self._response(request_id, plan, _final_status(plan)))

    def events(self, request_id: bytes, plan: Plan) -> Iterator[bytes]:
        """One item a token, then one for the end."""
        numbers = itertools.count()
        part = {"type": "output_text", "text": "", "annotations": []}
        where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        item = {**self._message(plan, "in_progress"), "content": []}

        def event(kind: str, **fields: Any) -> bytes:
            data = {"type": kind, "sequence_number": next(numbers), **fields}
            return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(data))

        begun = self._response(request_id, plan, "in_progress")
        start = b"".join(
            (
                event("response.created", response=begun),
                event("response.in_progress", response=begun),
                event("response.output_item.added", output_index=0, item=item),
                event("response.content_part.added", **where, part=part),
            )
        )
        for word in plan.words:
            yield start + event("response.output_text.delta", **where, delta=word, logprobs=[])
            start = b""
        text = "".join(plan.words)
        status = _final_status(plan)
        yield start + b"".join(
            (
                event("response.output_text.done", **where, text=text, logprobs=[]),
                event("response.content_part.done", **where, part={**part, "text": text}),
                event("response.output_item.done", output_index=0, item=self._message(plan, status)),
                event(f"response.{status}", response=self._response(request_id, plan, status)),
            )
        )

    def _message(self, plan: Plan, status: str) -> dict[str, Any]:
        text = {"type": "output_text", "text": "".join(plan.words), "annotations": []}
        return {"id": "msg_1", "type": "message", "role": "assistant", "status": status, "content": [text]}

    def _response(self, request_id: bytes, plan: Plan, status: str) -> dict[str, Any]:
        ended = status != "in_progress"
        usage = {
            "input_tokens": plan.prompt_tokens,
            "input_tokens_details": {"cached_tokens": plan.cached_tokens},
            "output_tokens": len(plan.words),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": plan.prompt_tokens + len(plan.words),
        }
        return {
            "id": request_id.decode(),
            "object": "response",
            "created_at": int(time.time()),
            "status": status,
            "background": False,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self._model,
            "output": [self._message(plan, status)] if ended else [],
            "parallel_tool_calls": True,
            "service_tier": plan.service_tier,
            "tool_choice": "auto",
            "tools": [],
            "usage": usage if ended else None,
        }


def _final_status(plan: Plan) -> str:
    return "incomplete" if plan.finish_reason == "length" else "completed"

"""Role: the bytes of a scripted engine's answers, shaped as vLLM's. Owns: JSON bodies and server-sent events.

Streams are joined from prepared bytes: one process has to outrun the gateways that benchmarks put before it.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import orjson

from tests.support.scripted_script import Plan

DONE = b"data: [DONE]\n\n"
_counter = itertools.count(1)


class Wire:
    """The format of one endpoint (chat or text completion) for one model name."""

    def __init__(self, model: str, *, chat: bool) -> None:
        self._model = model
        self._chat = chat
        kind = "chat.completion" if chat else "text_completion"
        self._object = kind
        self._chunk_object = kind + ".chunk" if chat else kind
        self._prefix = b"chatcmpl-" if chat else b"cmpl-"
        self._second = 0
        self._middle: bytes = b""

    def new_id(self) -> bytes:
        return self._prefix + b"%012x" % next(_counter)

    def start(self, request_id: bytes, index: int) -> bytes:
        """The role chunk; text completions have none."""
        if not self._chat:
            return b""
        return self._event(request_id, index, b'"delta":{"role":"assistant","content":""}', b"null")

    def word(self, request_id: bytes, index: int, word: str) -> bytes:
        field = b'"delta":{"content":"%s"}' if self._chat else b'"text":"%s"'
        return self._event(request_id, index, field % _escaped(word), b"null")

    def end(self, request_id: bytes, index: int, finish_reason: str) -> bytes:
        field = b'"delta":{}' if self._chat else b'"text":""'
        return self._event(request_id, index, field, b'"%s"' % finish_reason.encode())

    def usage(self, request_id: bytes, plan: Plan) -> bytes:
        usage = b',"choices":[],"usage":' + orjson.dumps(plan.usage)
        return b'data: {"id":"' + request_id + b'",' + self._common() + usage + b"}\n\n"

    def whole(self, request_id: bytes, plan: Plan) -> bytes:
        text = "".join(plan.words)
        part: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return orjson.dumps(
            {
                "id": request_id.decode(),
                "object": self._object,
                "created": int(time.time()),
                "model": self._model,
                "choices": [
                    {"index": index, **part, "logprobs": None, "finish_reason": plan.finish_reason}
                    for index in range(plan.choices)
                ],
                "usage": plan.usage,
            }
        )

    def _event(self, request_id: bytes, index: int, field: bytes, finish_reason: bytes) -> bytes:
        return b'data: {"id":"%b",%b,"choices":[{"index":%d,%b,"logprobs":null,"finish_reason":%b}]}\n\n' % (
            request_id,
            self._common(),
            index,
            field,
            finish_reason,
        )

    def _common(self) -> bytes:
        now = int(time.time())
        if now != self._second:
            self._second = now
            common = {"object": self._chunk_object, "created": now, "model": self._model}
            self._middle = orjson.dumps(common)[1:-1]
        return self._middle


def _escaped(word: str) -> bytes:
    """Inside of a JSON string. Nearly every word can stand there as it is."""
    return word.encode() if word.isprintable() and '"' not in word and "\\" not in word else orjson.dumps(word)[1:-1]


def error_body(status: int, message: str, param: str | None = None) -> bytes:
    kind = {400: "BadRequestError", 404: "NotFoundError", 429: "TooManyRequestsError"}.get(
        status, "InternalServerError"
    )
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": status}})

"""Somebody else's OpenAI-compatible API: it answers what a test says, and keeps what it was asked.

Role: the far end of upstreams. It writes JSON with spaces and events with `\\r\\n`, as many do and engines do not. Must
not know: the gateway.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import orjson

PROMPT, CACHED, OUTPUT = 10, 4, 7
JSON, EVENTS = "application/json", "text/event-stream"


@dataclass(slots=True)
class Reply:
    """One answer. `cut`: the connection breaks after the parts; `hold`: nothing more comes."""

    status: int = 200
    parts: list[bytes] = field(default_factory=list)
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    cut: bool = False
    hold: bool = False


@dataclass(slots=True)
class Asked:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass(slots=True)
class ScriptedUpstream:
    """Answers with the replies in turn, and with the last one for ever."""

    replies: list[Reply]
    asked: list[Asked] = field(default_factory=list)
    left: int = 0
    """Clients that went away while it held."""

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        raw, more = b"", True
        while more:
            message = await receive()
            raw, more = raw + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.asked.append(Asked(scope["path"], headers, orjson.loads(raw)))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        await asyncio.sleep(reply.wait_s)
        answer = {"content-type": reply.content_type, **reply.headers}
        pairs = [(name.encode(), value.encode()) for name, value in answer.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": pairs})
        for part in reply.parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(0.005)
        if reply.hold:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.left += 1
            return
        if reply.cut:
            raise ConnectionError("cut, as the test wants it")
        await send({"type": "http.response.body", "body": b""})


def usage() -> dict[str, Any]:
    details = {"cached_tokens": CACHED}
    return {"prompt_tokens": PROMPT, "completion_tokens": OUTPUT, "prompt_tokens_details": details}


def whole(text: str = "from afar") -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body = {"id": "c-1", "object": "chat.completion", "model": "their-m", "choices": [choice], "usage": usage()}
    return Reply(parts=[json.dumps(body).encode()])


def event(fields: Any) -> bytes:
    return b"data: " + (fields if isinstance(fields, bytes) else json.dumps(fields).encode()) + b"\r\n\r\n"


def piece(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return event({"id": "c-1", "object": "chat.completion.chunk", "choices": [choice], "usage": None})


def streamed(*texts: str, told: bool = True, ends: bool = True, **fields: Any) -> Reply:
    """Begins with a comment, as some do to keep connections open."""
    last = event({"id": "c-1", "object": "chat.completion.chunk", "choices": [], "usage": usage()})
    parts = [
        b": one moment\r\n\r\n",
        *map(piece, texts),
        *([last] if told else []),
        *([event(b"[DONE]")] if ends else []),
    ]
    return Reply(parts=parts, content_type=EVENTS, **fields)


def failing(status: int, message: str = "no", **headers: str) -> Reply:
    body = {"error": {"message": message, "type": "x", "param": None, "code": None}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, [json.dumps(body).encode()], headers=named)

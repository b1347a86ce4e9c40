"""Streams as they were sent, and what a client makes of them. Role: what the tests of broken streams share. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from serve_apps.gateway.courses.continuation import Tokens, continuation
from serve_apps.gateway.courses.joined import JoinedStream
from serve_apps.gateway.courses.sent import Story
from serve_apps.gateway.doors import CHAT_PATH
from tests.support.scripted_text import token_ids

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


async def scripted_tokenizer(text: str, special: bool) -> list[int]:
    return token_ids(text)


@dataclass
class Client:
    """What has arrived, and what it means."""

    raw: bytes = b""
    attempts: list[bytes] = field(default_factory=list)

    @property
    def events(self) -> list[dict[str, Any]]:
        parts = self.raw.split(b"\n\n")
        assert parts[-2:] == [b"data: [DONE]", b""], parts[-2:]
        return [orjson.loads(part.removeprefix(b"data: ")) for part in parts[:-2]]

    def text(self) -> str:
        choices = [choice for event in self.events for choice in event["choices"]]
        return "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in choices)

    def reasons(self) -> list[str]:
        return [c["finish_reason"] for event in self.events for c in event["choices"] if c["finish_reason"]]

    def usages(self) -> list[dict[str, int]]:
        counts = ("prompt_tokens", "completion_tokens", "total_tokens")
        return [{name: e["usage"][name] for name in counts} for e in self.events if e.get("usage")]

    def roles(self) -> int:
        return sum("role" in choice.get("delta", {}) for event in self.events for choice in event["choices"])


def told(text: str, kind: str = "content", **more: Any) -> Story:
    return Story(threads={(0, kind, 0): [text]} if text else {}, **more)


def event(choice: dict[str, Any], **more: Any) -> bytes:
    return b"data: " + orjson.dumps({"id": "x", "choices": [{"index": 0, **choice}], **more}) + b"\n\n"


def joined(asked: dict[str, Any], text: str, path: str = CHAT_PATH, **more: Any) -> JoinedStream:
    kind = "content" if path == CHAT_PATH else "text"
    story = told(text, kind, envelope={"id": "first", "created": 1, "model": "m"}, roles={0})
    plan = continuation(path, orjson.dumps(asked), story)
    return JoinedStream(plan, Tokens(token_ids(plan.prefix)), story, **{"wants_usage": True, **more})

"""A scripted engine in the test's own loop whose answers end as the test says: cut, hung, with an error, never begun.

Role: deaths of replicas at an exact byte, without processes. Must not know: the gateway.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from tests.support.scripted_engine import Engine, read_body
from tests.support.scripted_script import Script
from tests.unit.serve_apps.servers import ENGINE_KEY

How = Literal["cut", "hang", "end", "error"]
ERROR = b'data: {"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}}\n\n'


@dataclass(frozen=True)
class Fate:
    """What becomes of one answer: after `after` bytes of its body the engine closes the connection, falls silent, ends
    the answer as if it were complete, or tells of an error."""

    how: How
    after: int = 0
    status: int | None = None
    """Answer with this status instead."""
    delay_s: float = 0.0
    """Silence before the answer."""


class _OverError(Exception):
    pass


@dataclass
class MortalEngine:
    """Answers as scripted, each answer with the next of `fates`; without one it lives."""

    fates: list[Fate | None] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    engine: Engine = field(default_factory=lambda: Engine("m", ENGINE_KEY, Script(), max_model_len=4000))
    left: int = 0
    """Answers whose client has gone."""

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if not scope["path"].startswith("/v1/"):
            await self.engine(scope, receive, send)
            return
        fate = self.fates.pop(0) if self.fates else None
        raw = await read_body(receive)
        self.bodies.append(orjson.loads(raw))
        again = _Again(raw, receive)
        try:
            if fate is not None and fate.delay_s:
                await _patience(receive, fate.delay_s)
            if fate is not None and fate.status is not None:
                await send({"type": "http.response.start", "status": fate.status, "headers": []})
                await send({"type": "http.response.body", "body": b"{}"})
                return
            await self.engine(scope, again, send if fate is None or fate.delay_s else _Doomed(fate, receive, send))
        except _OverError:
            return  # without a last word: the server closes the connection
        except _GoneError:
            self.left += 1


class _GoneError(Exception):
    pass


class _Doomed:
    def __init__(self, fate: Fate, receive: Any, send: Any) -> None:
        self._fate, self._receive, self._send = fate, receive, send
        self._left = fate.after

    async def __call__(self, message: dict[str, Any]) -> None:
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        body = message.get("body", b"")
        kept, self._left = body[: self._left], self._left - len(body)
        if self._left >= 0:
            await self._send(message)
            return
        if self._fate.how == "error":
            kept = kept[: kept.rfind(b"\n\n") + 2] if b"\n\n" in kept else b""
            kept += ERROR + b"data: [DONE]\n\n"
        if kept:
            await self._send({"type": "http.response.body", "body": kept, "more_body": True})
        if self._fate.how in ("end", "error"):
            await self._send({"type": "http.response.body", "body": b""})
        elif self._fate.how == "hang":
            await _patience(self._receive, None)
        raise _OverError


def cuts(*after: int, how: How = "cut") -> list[Fate | None]:
    return [Fate(how, n) for n in after]


async def _patience(receive: Any, seconds: float | None) -> None:
    """Silence; _GoneError if the client does not want to wait."""
    gone = asyncio.ensure_future(receive())
    done, _ = await asyncio.wait({gone}, timeout=seconds)
    if done:
        raise _GoneError
    gone.cancel()


class _Again:
    """A `receive` that has the body once more."""

    def __init__(self, body: bytes, receive: Any) -> None:
        self._message: dict[str, Any] | None = {"type": "http.request", "body": body, "more_body": False}
        self._receive = receive

    async def __call__(self) -> Any:
        message, self._message = self._message, None
        return message or await self._receive()

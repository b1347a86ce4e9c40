"""One call to one engine: what its status means, what ends it from outside, what its tokenizer says.

Owns: the connection's timeouts, and telling a replica that failed from a request that is wrong.
Must not know: leases, other attempts, who gets the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any, Protocol

import orjson

from serve_apps.gateway.courses.continuation import Continuation, Tokens
from serve_apps.gateway.courses.tokens import tokens_of
from serve_apps.gateway.doors import CHAT_PATH
from serve_apps.gateway.engine_client import EngineClient, Exchange
from serve_apps.gateway.errors import ApiError, engine_error
from serve_apps.leases import Progress
from serve_apps.messages import Grant

BROKEN = "the replica failed while serving this request"
RETRY_AFTER_S = 1.0
TOKENIZE_TIMEOUT_S = 5.0
LOOKS = 4
"""How often a stream is looked at within the time after which it counts as stalled."""
_RENDERED = ("messages", "tools", "chat_template_kwargs", "reasoning_effort", "continue_final_message")


class ReplicaFailedError(Exception):
    """The replica could not serve this request; another may."""


def broken(how: str) -> ApiError:
    """A stream ends here, in the middle of its answer."""
    message = f"{BROKEN}{how}. The answer so far is not complete: send the request again"
    return ApiError(502, "replica_failed", message, retry_after_s=RETRY_AFTER_S)


class Body(Protocol):
    """An answer's bytes as they come."""

    @property
    def over(self) -> bool:
        """Nothing more will come, as far as is known already."""

    def iter_any(self) -> AsyncIterator[bytes]: ...


class Answer(Protocol):
    """What a `Deliver` takes: an engine's answer, or one whose beginning has been read already."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def content_type(self) -> str: ...
    @property
    def content(self) -> Body: ...
    async def read(self) -> bytes: ...


class EventsAnswer:
    """A stream of events whose bytes come from here."""

    status = 200
    content_type = "text/event-stream"
    over = False

    def __init__(self, chunks: AsyncIterator[bytes], content_type: str = content_type) -> None:
        self._chunks = chunks
        self.headers: Mapping[str, str] = {"content-type": content_type}

    @property
    def content(self) -> EventsAnswer:
        return self

    def iter_any(self) -> AsyncIterator[bytes]:
        return self._chunks

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self._chunks])


class ReplicaLost:
    """Ends the attempt that is attached to it when the dispatcher says that its replica is gone, or it has stalled."""

    __slots__ = ("_happened", "_scope")

    def __init__(self) -> None:
        self._happened = False
        self._scope: asyncio.Timeout | None = None

    def attach(self, scope: asyncio.Timeout) -> None:
        self._scope = scope
        if self._happened:
            self.signal()

    def signal(self) -> None:
        """May come more than once, and when the attempt is already ending."""
        self._happened = True
        if self._scope is not None:
            with contextlib.suppress(RuntimeError):  # it is ending
                self._scope.reschedule(asyncio.get_running_loop().time())


class StallWatch:
    """Notices that a stream which has begun brings nothing any more. Costs a timer a stream, nothing an event."""

    __slots__ = ("_excused", "_looks", "_period_s", "_progress", "_seen", "_stalled", "_timer")

    def __init__(self, timeout_s: float, stalled: Callable[[], None], excused: Callable[[], bool]) -> None:
        """`excused`: waiting is not the engine's fault, or nothing could be done about it."""
        self._period_s = timeout_s / LOOKS
        self._stalled = stalled
        self._excused = excused
        self._progress: Progress | None = None
        self._seen = 0
        self._looks = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self, progress: Progress) -> None:
        self._progress = progress
        self._timer = asyncio.get_running_loop().call_later(self._period_s, self._look)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        assert self._progress is not None
        seen = self._progress.output_tokens
        # Before the first event a prompt is computed, which may take long; the health check watches over that.
        self._looks = self._looks + 1 if seen == self._seen and seen else 0
        self._seen = seen
        if self._looks >= LOOKS:
            self._looks = 0
            if not self._excused():
                self._stalled()
                return
        self._timer = asyncio.get_running_loop().call_later(self._period_s, self._look)


class EngineCalls:
    """Calls engines over persistent connections."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    def post(self, grant: Grant, path: str, body: bytes) -> Exchange:
        """The context of the answer; give it to `check` first."""
        return self._client.post(grant.base_url, path, grant.api_key, body)

    @staticmethod
    async def check(answer: Exchange, path: str) -> None:
        """Raises ReplicaFailedError, or ApiError for what is wrong with the request."""
        # 401 and 403 are about our key to the engine (another one has taken the port), not about the client's.
        # 501 is about the path: every replica would say so.
        if (answer.status >= 500 and answer.status != 501) or answer.status in (401, 403):
            raise ReplicaFailedError(f"the engine answered {answer.status}: {(await answer.read())[:200]!r}")
        if answer.status >= 400:
            raise engine_error(answer.status, await answer.read(), path)

    async def tokens(self, grant: Grant, path: str, model: str, asked: Continuation) -> Tokens | None:
        """The text so far as the engine's tokens, which it tells at `path`."""
        return await tokens_of(asked, partial(self._tokenize, grant, path, model))

    async def prompt_tokens(self, grant: Grant, path: str, model: str, asked: Continuation) -> int | None:
        """The length of the request's own prompt; None where the engine does not say."""
        if asked.path == CHAT_PATH:
            rendered = {name: asked.asked[name] for name in _RENDERED if asked.asked.get(name) is not None}
            tokens = await self._ids(grant, path, {"model": model, **rendered})
        elif isinstance(asked.prompt, list):
            return len(asked.prompt)
        else:
            tokens = await self._tokenize(grant, path, model, asked.prompt, True)
        return len(tokens) if tokens is not None else None

    async def _tokenize(self, grant: Grant, path: str, model: str, text: str, special: bool) -> list[int] | None:
        """vLLM and SGLang take and answer the same here."""
        return await self._ids(grant, path, {"model": model, "prompt": text, "add_special_tokens": special})

    async def _ids(self, grant: Grant, path: str, body: dict[str, Any]) -> list[int] | None:
        """Raises EngineConnectionError, TimeoutError: those are about the replica, not about its tokenizer."""
        async with asyncio.timeout(TOKENIZE_TIMEOUT_S), self.post(grant, path, orjson.dumps(body)) as answer:
            status, said = answer.status, await answer.read()
        try:
            tokens = orjson.loads(said)["tokens"] if status == 200 else None
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return None
        return tokens if isinstance(tokens, list) and all(isinstance(token, int) for token in tokens) else None

"""Conversations with a real engine, each user at their own pace, whether the others are answered or not.

A message is sent when it is due, but not before the answer before it was read; it carries the whole conversation, with
the answers as they came. Time to the first token is counted from then. What is still unsent when the load is over stays
unsent. Data is acknowledged at once until the first token is there: otherwise a door that has left Nagle's algorithm on
would wait 40 ms for this end's delayed acknowledgement, which is not its own cost.

Owns: order and timing. Must not know: what is made of the answers, which door it is.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
import orjson

from benchmarks.load import Target
from benchmarks.routing_live_sides.chats import ANSWER_TOKENS, Ask

PATIENCE_S = 60.0
"""For one answer. A request that failed counts as this long."""
READING_S = 1.0
Message = dict[str, str]


@dataclass(slots=True)
class Turn:
    """One request and its answer."""

    sent_s: float
    """Since the load began."""
    messages: list[Message]
    answer: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    ttft_s: float | None = None
    """None: it failed."""
    failure: str = ""


@dataclass(slots=True)
class Outcome:
    """All turns of one load, in the order in which they were sent."""

    turns: list[Turn] = field(default_factory=list)
    unsent: int = 0


async def chatted(target: Target, model: str, users: Sequence[Sequence[Ask]], seconds: float) -> Outcome:
    """All users at once, for so long."""
    outcome = Outcome()
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(target.base_url, headers=headers, timeout=timeout, connector=connector) as http:
        load = _Load(http, model, seconds, outcome)
        await asyncio.gather(*(load.user(asks) for asks in users))
    return outcome


class _Load:
    def __init__(self, http: aiohttp.ClientSession, model: str, seconds: float, outcome: Outcome) -> None:
        self._http = http
        self._model = model
        self._seconds = seconds
        self._outcome = outcome
        self._began_s = time.perf_counter()

    def _now_s(self) -> float:
        return time.perf_counter() - self._began_s

    async def user(self, asks: Sequence[Ask]) -> None:
        messages: list[Message] = []
        free_at_s = 0.0
        for number, ask in enumerate(asks):
            at_s = max(ask.due_s, free_at_s)
            if at_s >= self._seconds:
                self._outcome.unsent += len(asks) - number
                return
            await asyncio.sleep(max(0.0, at_s - self._now_s()))
            if ask.system is not None:
                messages = [{"role": "system", "content": ask.system}]
            messages.append({"role": "user", "content": ask.text})
            turn = Turn(self._now_s(), list(messages))
            self._outcome.turns.append(turn)
            await self._answer(turn)
            messages.append({"role": "assistant", "content": turn.answer})
            free_at_s = self._now_s() + READING_S

    async def _answer(self, turn: Turn) -> None:
        body = {
            "model": self._model,
            "messages": turn.messages,
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            async with self._http.post("/v1/chat/completions", json=body) as answer:
                if answer.status != 200:
                    raise _FailedError(f"{answer.status}: {(await answer.text())[:300]}")
                await self._read(answer, turn)
        except (aiohttp.ClientError, TimeoutError, _FailedError) as error:
            turn.ttft_s, turn.failure = None, str(error) or type(error).__name__

    async def _read(self, answer: aiohttp.ClientResponse, turn: Turn) -> None:
        acknowledge_at_once(answer)
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            event = orjson.loads(line[6:])
            if "error" in event:
                raise _FailedError(str(event["error"]))
            text = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
            if turn.ttft_s is None:
                acknowledge_at_once(answer)
                turn.ttft_s = self._now_s() - turn.sent_s if text else None
            turn.answer += text
            if usage := event.get("usage"):
                turn.prompt_tokens = usage["prompt_tokens"]
                turn.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        if turn.ttft_s is None or not turn.prompt_tokens:
            raise _FailedError("the stream ended without text or without usage")


class _FailedError(Exception):
    """A request was not answered."""


def acknowledge_at_once(answer: aiohttp.ClientResponse) -> None:
    """What has come so far; the socket forgets this with its next packet."""
    if answer.connection is not None and answer.connection.transport is not None:
        plain = answer.connection.transport.get_extra_info("socket")
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

"""Online work: a conversation of a few turns by streaming. Owns: its words. Must not know: the screen's layout."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from cluster.cli.api import Answer, RequestFailed, stream_chat
from cluster.demo.results import RequestResult

TURNS = (
    "Hello! In two sentences: what is a distributed computer?",
    "What is one thing that such a system makes harder?",
    "Now say that again for a child of ten.",
)
SYSTEM = "You are a friendly teacher. Answer briefly."
MAX_TOKENS = 64
TENANT = "default"


async def converse(
    client: httpx.AsyncClient, key: str, model: str, on_turn: Callable[[int, str, Answer], None]
) -> list[RequestResult]:
    """Every turn with all that came before it. `on_turn` gets its number, question and answer when it is over."""
    messages = [{"role": "system", "content": SYSTEM}]
    results = []
    for number, question in enumerate(TURNS, 1):
        messages.append({"role": "user", "content": question})
        body = {
            "model": model,
            "messages": messages,
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
            "service_tier": "default",
        }
        try:
            answer = await stream_chat(client, key, body)
        except (RequestFailed, httpx.HTTPError) as error:
            results.append(RequestResult(TENANT, question, error=str(error) or type(error).__name__))
            return results
        messages.append({"role": "assistant", "content": answer.text})
        results.append(RequestResult(TENANT, question, answer))
        on_turn(number, question, answer)
    return results

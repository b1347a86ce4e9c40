"""Which reader an engine's answer needs, by the door it came through.

Owns: that choice, and what is billed for an answer that is no stream. Must not know: connections, leases.
"""

from __future__ import annotations

from typing import Any, Protocol

import orjson

from cluster.scheduling import TokenUsage
from serve_apps.gateway.apis import messages
from serve_apps.gateway.doors import BY_PATH, MESSAGES_PATH, RESPONSES_PATH
from serve_apps.gateway.request import GenerationRequest
from serve_apps.gateway.sse import EventStream, ResponseEventStream, read_usage


class AnswerStream(Protocol):
    """A stream of events on its way to the client."""

    output_tokens: int
    """Pieces of output seen so far, about as many as tokens."""
    usage: TokenUsage | None
    """The engine's own count; None until it has told all of it."""

    def feed(self, chunk: bytes) -> bytes: ...

    def rest(self) -> bytes: ...


def stream_for(request: GenerationRequest) -> AnswerStream:
    """What reads the stream of answers to this request."""
    if request.path == RESPONSES_PATH:
        return ResponseEventStream()
    if request.path == MESSAGES_PATH:
        return messages.MessageEventStream()
    return EventStream(request.tier, request.wants_usage)


def body_usage_for(request: GenerationRequest, body: bytes) -> TokenUsage:
    """What to bill for a whole answer: the engine's count, or the estimate of the prompt where it tells none."""
    if not BY_PATH[request.path].metered:
        return TokenUsage()
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:  # vectors may come as bytes
        parsed = None
    return _usage_in(request, parsed) or TokenUsage(request.prompt_tokens)


def _usage_in(request: GenerationRequest, answer: Any) -> TokenUsage | None:
    if isinstance(answer, list):
        return _usage_of_items(answer, request.body)
    if not isinstance(answer, dict):
        return None
    read = messages.read_usage if request.path == MESSAGES_PATH else read_usage
    return read(answer.get("usage"))


def _usage_of_items(items: list[Any], asked: bytes) -> TokenUsage | None:
    """SGLang's reranking answers a list, of which each item may have counted its own tokens. Documents that `top_n`
    left out have cost about as much each.
    """
    counts = [item.get("meta_info") for item in items if isinstance(item, dict)]
    tokens = [c["prompt_tokens"] for c in counts if isinstance(c, dict) and isinstance(c.get("prompt_tokens"), int)]
    if not tokens:
        return None
    documents = orjson.loads(asked).get("documents")
    ranked = len(documents) if isinstance(documents, list) else len(tokens)
    return TokenUsage(round(sum(tokens) * max(ranked, len(tokens)) / len(tokens)))

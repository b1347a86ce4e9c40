"""A small client of the gateway: streaming chat with timings, and the status page.

Owns: reading server-sent events and OpenAI-shaped errors. Must not know: the screen, the cluster behind the URL.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from cluster.config import TribesConfig

CONNECT_TIMEOUT_S = 5.0
STATUS_TIMEOUT_S = 10.0
_DATA = "data:"
_EVERYWHERE = ("0.0.0.0", "::")


class RequestFailed(Exception):
    """The API refused or broke off a request. `status` is 0 when it happened inside a stream."""

    def __init__(self, status: int, message: str, retry_after_s: float | None = None) -> None:
        again = f" (try again in {retry_after_s:.0f} s)" if retry_after_s is not None else ""
        super().__init__(
            f"the API answered {status}: {message}{again}" if status else f"the stream broke off: {message}"
        )
        self.status = status
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class Answer:
    """A streamed answer and what the client saw of it; times are measured here, not reported by the server."""

    text: str = ""
    tier: str | None = None
    request_class: str | None = None
    finish_reason: str | None = None
    queue_wait_s: float | None = None
    ttft_s: float | None = None
    itl_s: list[float] = field(default_factory=list)
    total_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


def api_url(config: TribesConfig) -> str:
    """The gateway's address as seen from this machine."""
    host = "127.0.0.1" if config.gateway.host in _EVERYWHERE else config.gateway.host
    return f"http://{host}:{config.gateway.port}"


def timeouts(idle_s: float) -> httpx.Timeout:
    """Connecting is quick or hopeless; an answer may wait in the queue for as long as its class allows."""
    return httpx.Timeout(idle_s, connect=CONNECT_TIMEOUT_S)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def fetch_status(base_url: str, key: str, transport: httpx.BaseTransport | None = None) -> dict[str, Any]:
    """What the gateway says about the queues and replicas of every model."""
    with httpx.Client(base_url=base_url, timeout=STATUS_TIMEOUT_S, transport=transport) as client:
        response = client.get("/tribes/status", headers=bearer(key))
    if response.status_code != 200:
        raise failure_of(response, response.content)
    return dict(response.json())


async def stream_chat(
    client: httpx.AsyncClient, key: str, body: Mapping[str, Any], on_text: Callable[[str], None] = lambda _: None
) -> Answer:
    """Send one chat request and read it to its end. `on_text` gets every piece as it comes."""
    payload = {**body, "stream": True, "stream_options": {"include_usage": True}}
    answer, began_s = Answer(), time.monotonic()
    async with client.stream("POST", "/v1/chat/completions", json=payload, headers=bearer(key)) as response:
        if response.status_code != 200:
            raise failure_of(response, await response.aread())
        answer.request_class = response.headers.get("x-tribes-class")
        wait_ms = response.headers.get("x-tribes-queue-ms")
        answer.queue_wait_s = float(wait_ms) / 1000 if wait_ms is not None else None
        last_s = began_s
        async for line in _lines(response):
            event = read_event(line)
            if event is None:
                continue
            piece = take_event(answer, event)
            if piece:
                now_s = time.monotonic()
                if answer.ttft_s is None:
                    answer.ttft_s = now_s - began_s
                else:
                    answer.itl_s.append(now_s - last_s)
                last_s = now_s
                on_text(piece)
    answer.total_s = time.monotonic() - began_s
    return answer


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """Lines as server-sent events have them: httpx's own also end at U+2028 and the like, which JSON may hold."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r").decode()
    if rest:
        yield rest.decode()


def read_event(line: str) -> dict[str, Any] | None:
    """The object of a `data:` line; None for other lines and for the end mark."""
    if not line.startswith(_DATA):
        return None
    data = line[len(_DATA) :].strip()
    if not data or data == "[DONE]":
        return None
    try:
        event = json.loads(data)
    except ValueError:
        raise RequestFailed(0, f"unreadable event {data[:100]!r}") from None
    return event if isinstance(event, dict) else None


def take_event(answer: Answer, event: Mapping[str, Any]) -> str:
    """Add one event to the answer; returns its text."""
    if event.get("error"):
        raise RequestFailed(0, _message(event["error"]) or "the server gave no reason")
    answer.tier = event.get("service_tier") or answer.tier
    usage = event.get("usage")
    if usage:
        details = usage.get("prompt_tokens_details") or {}
        answer.prompt_tokens = usage.get("prompt_tokens") or 0
        answer.cached_tokens = details.get("cached_tokens") or 0
        answer.output_tokens = usage.get("completion_tokens") or 0
    piece = ""
    for choice in event.get("choices") or []:
        piece += (choice.get("delta") or {}).get("content") or ""
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
    answer.text += piece
    return piece


def failure_of(response: httpx.Response, body: bytes) -> RequestFailed:
    """The error that a refused request deserves, with the message the API gave."""
    try:
        parsed = json.loads(body)
        message = _message(parsed["error"])
    except (ValueError, KeyError, TypeError):
        message = body.decode(errors="replace").strip()[:200]
    after = response.headers.get("retry-after", "")
    return RequestFailed(
        response.status_code, message or response.reason_phrase, float(after) if after.isdigit() else None
    )


def _message(error: Any) -> str:
    return str(error.get("message") or "") if isinstance(error, dict) else str(error)

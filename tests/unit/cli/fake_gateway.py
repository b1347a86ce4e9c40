"""A gateway on loopback that answers with a script: enough of the API for its clients, without Ray or engines."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

STATUS_CLASSES = {
    "semi_online": {
        "waiting": 3,
        "waiting_by_tenant": {"team-a": 3},
        "running_by_tenant": {"team-b": 1},
        "service_by_tenant": {"team-a": 10.0, "team-b": 20.5},
    }
}


@dataclass
class FakeGateway:
    """Answers every chat with `words`, one event each; tests change the fields and read `requests`."""

    port: int
    words: list[str] = field(default_factory=lambda: ["Hel", "lo", "!"])
    fail_status: int | None = None
    fail_after_words: int | None = None
    word_s: float = 0.002
    replicas: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.keys.append(headers.get("authorization", "").removeprefix("Bearer "))
        if scope["path"] == "/tribes/status":
            await _json(send, 200, {"models": [self.status()]})
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.requests.append(json.loads(body))
        if self.fail_status is not None:
            error = {"error": {"message": "the queue is full", "code": "queue_full"}}
            await _json(send, self.fail_status, error, [(b"retry-after", b"7")])
            return
        await self._stream(send, self.requests[-1])

    def status(self) -> dict[str, Any]:
        return {"model": "m", "gateways": 1, "classes": STATUS_CLASSES, "replicas": self.replicas, "scaling": {}}

    async def _stream(self, send: Any, request: dict[str, Any]) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"x-tribes-queue-ms", b"12.5"), (b"x-tribes-class", b"c")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        first = {"choices": [{"delta": {"role": "assistant", "content": ""}}], "service_tier": "flex"}
        events = [first, *({"choices": [{"delta": {"content": word}}]} for word in self.words)]
        for number, event in enumerate(events):
            if number == self.fail_after_words:
                await send(_event({"error": {"message": "the replica failed"}}))
                await send({"type": "http.response.body", "body": b""})
                return
            await send(_event(event))
            await asyncio.sleep(self.word_s)
        usage = {
            "prompt_tokens": 11,
            "completion_tokens": len(self.words),
            "prompt_tokens_details": {"cached_tokens": 4},
        }
        await send(_event({"choices": [{"delta": {}, "finish_reason": "stop"}]}))
        await send(_event({"choices": [], "usage": usage}))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def _event(event: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "http.response.body",
        "body": b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n",
        "more_body": True,
    }


async def _json(send: Any, status: int, content: Any, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    sent = [(b"content-type", b"application/json"), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})


@contextmanager
def running_gateway() -> Iterator[FakeGateway]:
    """The fake on a free port, served by a thread of this process."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        gateway = FakeGateway(listener.getsockname()[1])
        server = uvicorn.Server(uvicorn.Config(gateway, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            thread.join(0.01)
        yield gateway
        server.should_exit = True
        thread.join(10)

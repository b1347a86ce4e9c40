"""Role: a stand-in for vLLM's or SGLang's OpenAI server, without a model: `python -m tests.support.scripted_engine`.

It takes both engines' command lines (what it does not know it ignores) and both ways of passing the API key, answers in
vLLM's shapes, and behaves as flags or a request's `x_script` say: slow, failing, dying, hanging. `GET /stats` counts.
Owns: HTTP and timing of the double. Must not know: Tribes. One event loop, no locks.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import uvicorn
import yaml

from tests.support import scripted_doors, scripted_messages
from tests.support.scripted_messages import MessagesWire
from tests.support.scripted_responses import ResponsesWire
from tests.support.scripted_script import BadRequestError, Plan, PrefixCache, Script, make_plan
from tests.support.scripted_stats import Stats, metrics_text
from tests.support.scripted_wire import DONE, Wire, error_body

AnyWire = Wire | ResponsesWire | MessagesWire
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
JSON = (b"content-type", b"application/json")
SSE_START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
DEATH_EXIT_CODE = 17
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES = "/v1/messages"


@dataclass(slots=True)
class Engine:
    """The ASGI application."""

    model: str
    api_key: str | None
    script: Script
    max_model_len: int | None = None
    max_running: int | None = None
    hang_health_after_s: float | None = None
    stats: Stats = field(default_factory=Stats)
    cache: PrefixCache = field(default_factory=PrefixCache)
    started_at: float = field(default_factory=time.monotonic)
    slots: asyncio.Semaphore | None = None
    wires: dict[str, AnyWire] = field(default_factory=dict)
    """By path."""

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.max_running) if self.max_running else None
        self.wires = {CHAT: Wire(self.model, chat=True), COMPLETIONS: Wire(self.model, chat=False)}
        self.wires |= {RESPONSES: ResponsesWire(self.model), MESSAGES: MessagesWire(self.model)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if self.api_key and path.startswith("/v1") and not self._authorized(scope):
            await respond(send, 401, b'{"error":"Unauthorized"}')
        elif path in self.wires:
            await self._serve(receive, send, path)
        elif path == "/v1/models":
            model = {"id": self.model, "object": "model", "owned_by": "scripted", "max_model_len": self.max_model_len}
            await respond(send, 200, orjson.dumps({"object": "list", "data": [model]}))
        elif path == "/health":
            if self.hang_health_after_s is not None and time.monotonic() > self.started_at + self.hang_health_after_s:
                await asyncio.Event().wait()
            await respond(send, 200, b"")
        elif path == "/stats":
            await respond(send, 200, orjson.dumps(asdict(self.stats)))
        elif path == "/metrics":
            text = metrics_text(self.stats, self.model, self.max_running)
            await respond(send, 200, text.encode(), (b"content-type", b"text/plain; version=0.0.4"))
        else:
            await self._compute(receive, send, path)

    def _authorized(self, scope: Scope) -> bool:
        return (b"authorization", b"Bearer " + (self.api_key or "").encode()) in scope["headers"]

    async def _serve(self, receive: Receive, send: Send, path: str) -> None:
        raw = await read_body(receive)
        self.stats.started += 1
        try:
            body = parse(raw)
            self._check_model(body)
            plan = make_plan(
                scripted_messages.as_chat(body) if path == MESSAGES else body,
                chat=path in (CHAT, MESSAGES),
                defaults=self.script,
                cache=self.cache,
                max_model_len=self.max_model_len,
                responses=path == RESPONSES,
            )
        except BadRequestError as error:
            status = 404 if error.param == "model" else 400
            self.stats.finished += 1
            return await respond(send, status, _error_at(path, status, str(error), error.param))
        if plan.script.fail_status is not None:
            self.stats.finished += 1
            status = plan.script.fail_status
            return await respond(send, status, _error_at(path, status, "scripted failure"))
        # An instant reply is over before a client can leave, so only the others pay for a watcher.
        gone = None if plan.script.instant and self.slots is None else asyncio.ensure_future(receive())
        try:
            finished = await self._in_a_slot(plan, self.wires[path], send, gone)
        finally:
            if gone is not None:
                gone.cancel()
        if finished:
            self.stats.finished += 1
        else:
            self.stats.aborted += 1

    async def _in_a_slot(self, plan: Plan, wire: AnyWire, send: Send, gone: asyncio.Future[Any] | None) -> bool:
        if self.slots is not None:
            self.stats.waiting += 1
            try:
                await self.slots.acquire()
            finally:
                self.stats.waiting -= 1
        self.stats.running += 1
        self.stats.max_running = max(self.stats.max_running, self.stats.running)
        self.stats.prompt_tokens += plan.prompt_tokens
        try:
            return await self._generate(plan, wire, send, gone)
        finally:
            self.stats.running -= 1
            if self.slots is not None:
                self.slots.release()

    async def _generate(self, plan: Plan, wire: AnyWire, send: Send, gone: asyncio.Future[Any] | None) -> bool:
        """False when the client left before the end."""
        request_id = wire.new_id()
        if plan.stream:
            await send(SSE_START)
        for position, events in enumerate(stream_events(plan, wire, request_id)):
            if not await self._pace(plan.script, position, gone):
                return False
            self.stats.generation_tokens += plan.choices if position < len(plan.words) else 0
            if plan.stream:
                await send({"type": "http.response.body", "body": events, "more_body": position < len(plan.words)})
        if not plan.stream:
            await respond(send, 200, wire.whole(request_id, plan))
        return True

    async def _pace(self, script: Script, position: int, gone: asyncio.Future[Any] | None) -> bool:
        """Waits before the token at `position`; False when the client has left."""
        if script.die_after_tokens is not None and position >= script.die_after_tokens:
            await asyncio.sleep(0.05)  # what was sent so far is on the wire
            os._exit(DEATH_EXIT_CODE)
        hang = script.hang_after_tokens is not None and position >= script.hang_after_tokens
        delay_ms = script.ttft_ms if position == 0 else script.itl_ms
        if gone is not None and (hang or delay_ms > 0):
            await asyncio.wait((gone,), timeout=None if hang else delay_ms / 1000)
        return gone is None or not gone.done()

    async def _compute(self, receive: Receive, send: Send, path: str) -> None:
        """What needs no stream: tokens, vectors, scores."""
        raw = await read_body(receive)
        try:
            body = parse(raw) if raw else {}
            self._check_model(body)
            answer = scripted_doors.answer(path, self.model, body)
        except BadRequestError as error:
            return await respond(send, 400, _error_at(path, 400, str(error), error.param))
        if answer is None:
            return await respond(send, 404, b'{"detail":"Not Found"}')
        await respond(send, 200, answer)

    def _check_model(self, body: dict[str, Any]) -> None:
        if body.get("model", self.model) != self.model:
            raise BadRequestError(f"The model `{body['model']}` does not exist.", "model")


def stream_events(plan: Plan, wire: AnyWire, request_id: bytes) -> Iterator[bytes]:
    """One item a token (of all choices), then one for the end. The role comes with the first token's write."""
    if not isinstance(wire, Wire):
        yield from wire.events(request_id, plan)
        return
    choices = range(plan.choices)
    role = b"".join(wire.start(request_id, index) for index in choices)
    for word in plan.words:
        yield role + b"".join(wire.word(request_id, index, word) for index in choices)
        role = b""
    end = b"".join(wire.end(request_id, index, plan.finish_reason) for index in choices)
    usage = wire.usage(request_id, plan) if plan.include_usage else b""
    yield role + end + usage + DONE


def _error_at(path: str, status: int, message: str, param: str | None = None) -> bytes:
    if path.startswith(MESSAGES):
        return scripted_messages.error_body("BadRequestError", message)
    return error_body(status, message, param)


async def respond(send: Send, status: int, body: bytes, content_type: tuple[bytes, bytes] = JSON) -> None:
    headers = [content_type, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def read_body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        part: bytes = message.get("body", b"")
        body += part
        if not message.get("more_body"):
            return body


def parse(raw: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"invalid JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequestError("the body must be a JSON object")
    return body


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(allow_abbrev=False)
    flags.add_argument("--host", default="127.0.0.1")
    flags.add_argument("--port", type=int, required=True)
    flags.add_argument("--api-key")
    flags.add_argument("--config", type=Path, help="YAML file that may hold api-key, as SGLang's")
    flags.add_argument("--model", "--model-path", dest="model_path", default="scripted")
    flags.add_argument("--served-model-name")
    flags.add_argument("--max-model-len", "--context-length", dest="max_model_len", type=int)
    flags.add_argument("--max-num-seqs", "--max-running-requests", dest="max_running", type=int)
    for name, default in asdict(Script()).items():
        kind = float if name.endswith("_ms") else str if name == "text" else int
        flags.add_argument(f"--{name.replace('_', '-')}", dest=name, type=kind, default=default)
    flags.add_argument("--start-delay-ms", type=float, default=0.0)
    flags.add_argument("--fail-start", help="print this and exit with 1, as an engine that cannot start does")
    flags.add_argument("--hang-health-after-s", type=float)
    return flags


def api_key(flags: argparse.Namespace) -> str | None:
    from_file = (yaml.safe_load(flags.config.read_text()) or {}).get("api-key") if flags.config else None
    key: str | None = flags.api_key or from_file or os.environ.get("VLLM_API_KEY")
    return key


def main() -> None:
    flags, _ = parser().parse_known_args()
    time.sleep(flags.start_delay_ms / 1000)
    if flags.fail_start:
        sys.exit(flags.fail_start)
    engine = Engine(
        model=flags.served_model_name or flags.model_path,
        api_key=api_key(flags),
        script=Script(**{name: getattr(flags, name) for name in asdict(Script())}),
        max_model_len=flags.max_model_len,
        max_running=flags.max_running,
        hang_health_after_s=flags.hang_health_after_s,
    )
    uvicorn.run(
        engine,
        host=flags.host,
        port=flags.port,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()

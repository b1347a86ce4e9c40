"""The gateway's ASGI application: routes, authentication, lifespan.

Owns: what each path does, and the parts of one gateway process. Must not know: Ray Serve (deployment.py), policies.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import aiohttp
import orjson

from cluster.config import TribesConfig
from cluster.files import FileStore
from cluster.state import Store, UsageRecord
from cluster.state.deferred import DeferredStore
from serve_apps.gateway.auth import KeyRing
from serve_apps.gateway.background_api import Background, Place, place_of
from serve_apps.gateway.batches_api import BatchesApi
from serve_apps.gateway.course import Courses
from serve_apps.gateway.errors import ApiError
from serve_apps.gateway.files_api import FilesApi
from serve_apps.gateway.hints import Hints
from serve_apps.gateway.http import (
    JSON_HEADERS,
    ClientGoneError,
    Message,
    Receive,
    Scope,
    Send,
    header,
    read_body,
    send_error,
    send_response,
)
from serve_apps.gateway.ledger import Ledger
from serve_apps.gateway.relay import Relay
from serve_apps.gateway.request import GENERATION_PATHS, parse_request
from serve_apps.gateway.usage_api import UsageApi
from serve_apps.leases import LeaseClient, RefusedError

MAX_UPSTREAM_CONNECTIONS = 0
"""No limit: the leases are the limit."""
log = logging.getLogger(__name__)

MetricsPage = Callable[[], Awaitable[bytes]]


class FinishedSink(Protocol):
    """Where finished requests are counted (metrics)."""

    def finished(self, record: UsageRecord) -> None: ...


class Gateway:
    """One gateway process. `connect` makes the lease client of a model; it is called inside the event loop."""

    def __init__(
        self,
        config: TribesConfig,
        store: Store,
        connect: Callable[[str], LeaseClient],
        metrics: FinishedSink,
        metrics_page: MetricsPage,
    ) -> None:
        self._config = config
        self._keys = KeyRing(store)
        self._ledger = Ledger(store)
        self._usage = UsageApi(store, config)
        deferred = DeferredStore(store)
        self._background = Background(config.batches, deferred)
        self._files = FilesApi(config.files, deferred, FileStore(config.files.url))
        self._batches = BatchesApi(config.batches, deferred)
        self._connect = connect
        self._metrics = metrics
        self._metrics_page = metrics_page
        self._leases: dict[str, LeaseClient] = {}
        self._session: aiohttp.ClientSession | None = None
        self._relay: Relay | None = None

    async def start(self) -> None:
        connector = aiohttp.TCPConnector(limit=MAX_UPSTREAM_CONNECTIONS, keepalive_timeout=60)
        # Engines must see no cookies or encodings of ours, and their bytes must come undecoded.
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        )
        self._relay = Relay(Courses(self._session, self._config))
        for model in {d.model for d in self._config.serving().values()}:
            self._leases[model] = self._connect(model)
            self._leases[model].start()
        self._ledger.start()

    async def close(self) -> None:
        for leases in self._leases.values():
            await leases.close()
        if self._session is not None:
            await self._session.close()
        self._files.close()
        await self._ledger.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start()
        except Exception as error:
            log.exception("the gateway cannot start")
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._route(scope, receive, watched)
        except ApiError as error:
            await send_error(send, error)
        except RefusedError as refused:
            await send_error(send, ApiError.of_refusal(refused.refusal))
        except ClientGoneError:
            pass
        except Exception:
            log.exception("a request failed in the gateway")
            if started:
                raise
            await send_error(send, ApiError(500, "internal_error", "the gateway failed; the log says why"))

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path in GENERATION_PATHS:
            _require(method, "POST")
            await self._generate(path, scope, receive, send)
        elif (place := place_of(path)) is not None:
            await self._stored(method, place, scope, send)
        elif path == "/v1/files" or path.startswith("/v1/files/"):
            await self._files(await self._keys.caller(header(scope, b"authorization")), scope, receive, send)
        elif path == "/v1/batches" or path.startswith("/v1/batches/"):
            await self._batches(await self._keys.caller(header(scope, b"authorization")), scope, receive, send)
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            _require(method, "GET")
            await self._keys.caller(header(scope, b"authorization"))
            await send_response(send, 200, JSON_HEADERS, self._models(path))
        elif path == "/v1/usage":
            _require(method, "GET")
            caller = await self._keys.caller(header(scope, b"authorization"))
            await send_response(send, 200, JSON_HEADERS, await self._usage.answer(caller, scope["query_string"]))
        elif path == "/tribes/status":
            _require(method, "GET")
            await self._keys.caller(header(scope, b"authorization"))
            await send_response(send, 200, JSON_HEADERS, await self._status())
        elif path == "/health":
            await send_response(send, 200, JSON_HEADERS, b'{"status":"ok"}')
        elif path == "/metrics":
            if not self._config.gateway.metrics_without_key:
                await self._keys.caller(header(scope, b"authorization"))
            text = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
            await send_response(send, 200, text, await self._metrics_page())
        else:
            raise ApiError(404, "unknown_url", f"unknown path {path}; the API is under /v1, see README")

    async def _generate(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._relay is not None
        caller = await self._keys.caller(header(scope, b"authorization"))
        raw = await read_body(scope, receive, self._config.gateway.max_body_bytes)
        request = parse_request(path, raw, caller, self._config, _hints(scope))
        if request.background:
            status, answer = await self._background.accept(request, raw, caller)
            await send_response(send, status, JSON_HEADERS, answer)
            return
        max_wait_s = self._config.scheduling.classes[request.request_class].max_wait_s
        await self._relay.run(request, caller, self._leases[request.model], max_wait_s, receive, send, self._finished)

    async def _stored(self, method: str, place: Place, scope: Scope, send: Send) -> None:
        caller = await self._keys.caller(header(scope, b"authorization"))
        answer = await self._background.answer(method, place, scope.get("query_string", b""), caller)
        await send_response(send, 200, JSON_HEADERS, answer)

    def _finished(self, record: UsageRecord) -> None:
        self._metrics.finished(record)
        if record.deployment:
            self._ledger.add(record)

    async def _status(self) -> bytes:
        """What every model's dispatcher says about its queue and replicas."""
        statuses = await asyncio.gather(*(leases.status() for leases in self._leases.values()))
        return orjson.dumps({"models": statuses})

    def _models(self, path: str) -> bytes:
        served = {d.model for d in self._config.serving().values()}
        cards = [
            {"id": name, "object": "model", "created": int(_STARTED_S), "owned_by": self._config.name}
            for name in self._config.models
            if name in served
        ]
        if path == "/v1/models":
            return orjson.dumps({"object": "list", "data": cards})
        name = path.removeprefix("/v1/models/")
        for card in cards:
            if card["id"] == name:
                return orjson.dumps(card)
        raise ApiError(404, "model_not_found", f"unknown model {name!r}", param="model")


_STARTED_S = time.time()


def _hints(scope: Scope) -> Hints:
    return Hints(header(scope, b"x-session-id"), header(scope, b"x-program-id"), header(scope, b"x-deadline-ms"))


def _require(method: str, allowed: str) -> None:
    if method != allowed:
        raise ApiError(405, "method_not_allowed", f"use {allowed} here, not {method}")

"""The gateway's ASGI application: routes, authentication, lifespan.

Owns: what each path does, and the parts of one gateway process. Must not know: Ray Serve (deployment.py), policies.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import orjson

from cluster.config import TribesConfig
from cluster.files import FileStore
from cluster.state import Store, UsageRecord
from cluster.state.deferred import DeferredStore
from serve_apps.gateway.apis.background import Background, Place, place_of
from serve_apps.gateway.apis.batches import BatchesApi
from serve_apps.gateway.apis.files import FilesApi
from serve_apps.gateway.apis.usage import UsageApi
from serve_apps.gateway.auth import Caller, KeyRing
from serve_apps.gateway.catalogue import Catalogue
from serve_apps.gateway.courses.course import Courses
from serve_apps.gateway.courses.replica_health import Happened, untold
from serve_apps.gateway.doors import DOORS
from serve_apps.gateway.engine_client import EngineClient
from serve_apps.gateway.errors import ApiError, require_method
from serve_apps.gateway.hints import Hints
from serve_apps.gateway.http import (
    JSON_HEADERS,
    ClientGoneError,
    Message,
    Receive,
    Scope,
    Send,
    header,
    headers_of,
    read_body,
    send_error,
    send_response,
)
from serve_apps.gateway.ledger import Ledger
from serve_apps.gateway.regions.router import Regions
from serve_apps.gateway.relay import Relay
from serve_apps.gateway.request import parse_request
from serve_apps.gateway.upstreams.courses import WithUpstreams
from serve_apps.gateway.upstreams.routes import Upstreams
from serve_apps.leases import LeaseClient, RefusedError

log = logging.getLogger(__name__)

MetricsPage = Callable[[], Awaitable[bytes]]


class FinishedSink(Protocol):
    """Where finished requests are counted (metrics)."""

    def finished(self, record: UsageRecord) -> None: ...


class Gateway:
    """One gateway process. `connect` makes the lease client of a model; it is called inside the event loop. `happened`
    hears what is done about replicas that fail.
    """

    def __init__(
        self,
        config: TribesConfig,
        store: Store,
        connect: Callable[[str], LeaseClient],
        metrics: FinishedSink,
        metrics_page: MetricsPage,
        happened: Happened = untold,
    ) -> None:
        self._config = config
        self._catalogue = Catalogue(config)
        self._max_body_bytes = config.gateway.max_body_bytes
        self._max_wait_s = {name: item.max_wait_s for name, item in config.scheduling.classes.items()}
        self._keys = KeyRing(store)
        self._ledger = Ledger(store)
        self._usage = UsageApi(store, config)
        self._upstreams = Upstreams(config, store)
        self._unleased = LeaseClient(None, "")
        """Of models that only upstreams serve: no queue, no leases."""
        deferred = DeferredStore(store)
        self._background = Background(config.batches, deferred)
        self._files = FilesApi(config.files, deferred, FileStore(config.files.url))
        self._batches = BatchesApi(config.batches, deferred)
        self._connect = connect
        self._metrics = metrics
        self._metrics_page = metrics_page
        self._happened = happened
        self._leases: dict[str, LeaseClient] = {}
        self._regions = Regions(config, self._leases) if config.region is not None else None
        self._engines: EngineClient | None = None
        self._relay: Relay | None = None

    async def start(self) -> None:
        gateway = self._config.gateway
        self._engines = EngineClient(gateway.upstream_connect_timeout_s, gateway.upstream_idle_timeout_s)
        await self._upstreams.start()
        courses = Courses(self._engines, self._config, self._happened)
        runner = WithUpstreams(courses, self._upstreams) if self._config.upstreams else courses
        self._relay = Relay(runner, gateway.client_timeout_s)
        for model in {d.model for d in self._config.serving().values()}:
            self._leases[model] = self._connect(model)
            self._leases[model].start()
        if self._regions is not None:
            await self._regions.start()
        self._ledger.start()

    async def close(self) -> None:
        for leases in self._leases.values():
            await leases.close()
        await self._upstreams.close()
        if self._regions is not None:
            await self._regions.close()
        if self._engines is not None:
            await self._engines.close()
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
        path = scope["path"]

        def watched(message: Message) -> Awaitable[None]:  # no coroutine of its own: every chunk passes here
            nonlocal started
            started = True
            return send(message)

        try:
            await self._route(scope, receive, watched)
        except ClientGoneError:
            pass
        except Exception as error:
            answer = _answer_to(error)
            if started:  # too late for one: the connection breaks, and the client sees that something is missing
                raise
            await send_error(send, answer, path)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path in DOORS:
            require_method(method, "POST")
            await self._generate(path, scope, receive, send)
        elif (place := place_of(path)) is not None:
            await self._stored(method, place, scope, send)
        elif path == "/v1/files" or path.startswith("/v1/files/"):
            await self._files(await self._caller(scope), scope, receive, send)
        elif path == "/v1/batches" or path.startswith("/v1/batches/"):
            await self._batches(await self._caller(scope), scope, receive, send)
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            require_method(method, "GET")
            await self._caller(scope)
            await send_response(send, 200, JSON_HEADERS, self._models(path))
        elif path == "/v1/usage":
            require_method(method, "GET")
            answer = await self._usage.answer(await self._caller(scope), scope["query_string"])
            await send_response(send, 200, JSON_HEADERS, answer)
        elif path == "/tribes/status":
            require_method(method, "GET")
            await self._operator(scope)
            await send_response(send, 200, JSON_HEADERS, await self._status())
        elif path == "/tribes/region" and self._regions is not None:
            require_method(method, "GET")
            await self._operator(scope)
            await send_response(send, 200, JSON_HEADERS, await self._regions.page())
        elif path == "/health":
            await send_response(send, 200, JSON_HEADERS, b'{"status":"ok"}')
        elif path == "/metrics":
            if not self._config.gateway.metrics_without_key:
                await self._operator(scope)
            text = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
            await send_response(send, 200, text, await self._metrics_page())
        else:
            raise ApiError(404, "unknown_url", f"unknown path {path}; the API is under /v1, see README")

    async def _generate(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._relay is not None
        headers = headers_of(scope)
        caller = await self._keys.caller(headers.get(b"authorization"), headers.get(b"x-api-key"))
        raw = await read_body(headers.get(b"content-length"), receive, self._max_body_bytes)
        request = parse_request(path, raw, caller, self._catalogue, _hints(headers))
        if request.background and self._upstreams.alone(request.model):
            message = f"model {request.model!r} is served by an upstream alone, which runs nothing in the background"
            raise ApiError(400, "unsupported_parameter", message, param="background")
        if request.background:
            status, answer = await self._background.accept(request, raw, caller)
            await send_response(send, status, JSON_HEADERS, answer)
            return
        if self._regions is not None:
            if await self._regions.forwarded(path, raw, request, caller, headers, receive, send):
                return
            send = self._regions.watched(request, caller, send)
        max_wait_s = self._max_wait_s[request.request_class]
        leases = self._leases.get(request.model, self._unleased)
        await self._relay.run(request, caller, leases, max_wait_s, receive, send, self._finished)

    async def _caller(self, scope: Scope) -> Caller:
        return await self._keys.caller(header(scope, b"authorization"))

    async def _operator(self, scope: Scope) -> None:
        """Raises ApiError unless the key may see what names every tenant."""
        caller = await self._caller(scope)
        if not caller.operator:
            message = (
                f"this names every tenant: ask with a key of an operator, which {caller.tenant!r} is not "
                "(`operator: true` makes a tenant one)"
            )
            raise ApiError(403, "not_an_operator", message)

    async def _stored(self, method: str, place: Place, scope: Scope, send: Send) -> None:
        caller = await self._caller(scope)
        answer = await self._background.answer(method, place, scope.get("query_string", b""), caller)
        await send_response(send, 200, JSON_HEADERS, answer)

    def _finished(self, record: UsageRecord) -> None:
        self._metrics.finished(record)
        if record.deployment:
            self._ledger.add(record)

    async def _status(self) -> bytes:
        """What every model's dispatcher says about its queue and replicas."""
        statuses = await asyncio.gather(*(leases.status() for leases in self._leases.values()))
        region = self._regions.status() if self._regions is not None else None
        return orjson.dumps({"models": statuses, "upstreams": self._upstreams.status(), "region": region})

    def _models(self, path: str) -> bytes:
        common = {"object": "model", "created": int(_STARTED_S), "owned_by": self._config.name}
        cards = [{"id": name, **common} for name in self._catalogue.served]
        if path == "/v1/models":
            return orjson.dumps({"object": "list", "data": cards})
        name = path.removeprefix("/v1/models/")
        for card in cards:
            if card["id"] == name:
                return orjson.dumps(card)
        raise ApiError(404, "model_not_found", f"unknown model {name!r}", param="model")


_STARTED_S = time.time()


def _hints(headers: Mapping[bytes, bytes]) -> Hints:
    return Hints(headers.get(b"x-session-id"), headers.get(b"x-program-id"), headers.get(b"x-deadline-ms"))


def _answer_to(error: Exception) -> ApiError:
    """What the client hears of it; our own mistakes are for the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RefusedError):
        return ApiError.of_refusal(error.refusal)
    log.error("a request failed in the gateway", exc_info=error)
    return ApiError(500, "internal_error", "the gateway failed; the log says why")

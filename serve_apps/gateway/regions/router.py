"""This region and its peers: each request runs where its first byte comes soon enough, and nearest.

A request is looked at when it comes, before it waits here. What goes to a peer goes as the client sent it, with the
client's own key (or the one that the configuration names), and its bytes come back as they are; it is queued, limited
and billed there. A request that a peer has sent is never sent on. Where the chosen peer does not take it, it runs here.

Owns: what this region expects, the choice applied, the passage of bytes. Must not know: the order of choice
(choice.py), connections (peer.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson

from cluster.config import TribesConfig
from cluster.vocabulary import RequestClass
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.error_shapes import as_event
from serve_apps.gateway.errors import ApiError
from serve_apps.gateway.http import ClientGoneError, Message, Receive, Send, cancelled_when_gone
from serve_apps.gateway.ready_replicas import ReadyReplicas
from serve_apps.gateway.regions.choice import AwaySessions, choose
from serve_apps.gateway.regions.load import Kind, RegionLoad
from serve_apps.gateway.regions.peer import FORWARDED_FROM, PeerRefusedError, RegionPeer
from serve_apps.gateway.request import GenerationRequest
from serve_apps.leases import LeaseClient

COUNT_S = 0.05
MAX_TENANTS_TOLD = 100
_OUT = (b"authorization", b"x-api-key", b"anthropic-version", b"x-session-id", b"x-program-id", b"x-deadline-ms")
_BACK = ("content-type", "retry-after", "retry-after-ms")
_BACK_PREFIXES = ("x-ratelimit-", "x-tribes-")


class Regions:
    """One gateway process's part in it."""

    def __init__(self, config: TribesConfig, leases: Mapping[str, LeaseClient]) -> None:
        assert config.region is not None
        self._config = config.region
        waits_s = [config.scheduling.classes[c].max_wait_s for c in config.region.ttft_slo_s]
        self._silence_s = max(waits_s, default=0.0) + config.gateway.upstream_idle_timeout_s
        """There a request may wait as long as here, and an engine be silent."""
        self._leases = leases
        self._load = RegionLoad()
        self._ready = ReadyReplicas()
        self._oldest: dict[str, tuple[float, Mapping[tuple[RequestClass, str], float]]] = {}
        self._away = AwaySessions(self._config.session_s)
        self._kinds = {(d.model, c) for d in config.serving().values() for c in d.serves}
        self._session: aiohttp.ClientSession | None = None
        self._peers: dict[str, RegionPeer] = {}
        self._probes: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        )
        self._peers = {
            name: RegionPeer(name, peer, self._config, self._silence_s, self._session)
            for name, peer in self._config.peers.items()
        }
        self._probes = [asyncio.create_task(peer.probe_forever()) for peer in self._peers.values()]

    async def close(self) -> None:
        for probe in self._probes:
            probe.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    # --- this region ----------------------------------------------------------------------------------------------

    async def _serves(self, kind: Kind) -> bool:
        leases = self._leases.get(kind[0])
        return leases is not None and kind in self._kinds and await self._ready.any_of(kind[0], leases)

    async def _here_s(self, kind: Kind, tenant: str) -> float:
        """What this region expects for the tenant; infinite where no replica is ready."""
        return self._expected_s(kind, tenant) if await self._serves(kind) else math.inf

    def _expected_s(self, kind: Kind, tenant: str) -> float:
        arrived_at_s = self._waiting(kind[0]).get((kind[1], tenant))
        oldest_wait_s = max(0.0, time.time() - arrived_at_s) if arrived_at_s is not None else 0.0
        return self._load.expected_s(kind, tenant, oldest_wait_s, time.monotonic())

    def _waiting(self, model: str) -> Mapping[tuple[RequestClass, str], float]:
        """Who waits since when; under overload it is counted a few times a second, not for every request."""
        at_s, oldest = self._oldest.get(model, (-math.inf, {}))
        if time.monotonic() - at_s > COUNT_S:
            oldest = self._leases[model].oldest_arrivals()
            self._oldest[model] = (time.monotonic(), oldest)
        return oldest

    async def page(self) -> bytes:
        """What peers ask for, of each kind of work that has a ready replica: the time to the first byte for tenants
        who wait here, and for all others.
        """
        models: dict[str, dict[str, Any]] = {}
        for model, request_class in sorted(self._kinds):
            kind = (model, request_class)
            if await self._serves(kind):
                waiting = [tenant for c, tenant in self._waiting(model) if c is request_class]
                models.setdefault(model, {})[request_class.value] = {
                    "others": self._load.expected_s(kind, None, 0.0, time.monotonic()),
                    "tenants": {tenant: self._expected_s(kind, tenant) for tenant in waiting[:MAX_TENANTS_TOLD]},
                }
        return orjson.dumps({"region": self._config.name, "models": models})

    def status(self) -> dict[str, Any]:
        now_s = time.monotonic()
        return {"region": self._config.name, "peers": [peer.status(now_s) for peer in self._peers.values()]}

    def watched(self, request: GenerationRequest, caller: Caller, send: Send) -> Send:
        """Learns from the head of an answer of this region how long it took."""
        began_s, kind = time.monotonic(), (request.model, request.request_class)

        async def watching(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                queue_ms = next((v for n, v in message["headers"] if n == b"x-tribes-queue-ms"), b"0")
                now_s = time.monotonic()
                first_byte_s = now_s - began_s if request.stream else None
                self._load.began(kind, caller.tenant, float(queue_ms) / 1000, first_byte_s, now_s)
            await send(message)

        return watching

    # --- other regions --------------------------------------------------------------------------------------------

    async def forwarded(
        self,
        path: str,
        raw: bytes,
        request: GenerationRequest,
        caller: Caller,
        headers: Mapping[bytes, bytes],
        receive: Receive,
        send: Send,
    ) -> bool:
        """Whether the request was served by another region; False: it runs here, and nothing was sent yet."""
        peer = await self._chosen(request, caller, headers)
        if peer is None:
            return False
        out = {name.decode(): value.decode("latin-1") for name, value in headers.items() if name in _OUT}
        passage = _Passage(path, peer.name, send)
        kind = (request.model, request.request_class)
        try:
            async with (
                cancelled_when_gone(receive),
                peer.ask(path, raw, out, kind, caller.tenant, request.stream) as answer,
            ):
                await passage.through(answer)
        except PeerRefusedError:
            self._note(request, caller, None)
            return False
        except ClientGoneError:
            return True
        return True

    async def _chosen(
        self, request: GenerationRequest, caller: Caller, headers: Mapping[bytes, bytes]
    ) -> RegionPeer | None:
        slo_s = self._config.ttft_slo_s.get(request.request_class)
        if slo_s is None or FORWARDED_FROM.encode() in headers or request.background:
            return None
        now_s, kind = time.monotonic(), (request.model, request.request_class)
        found = {name: peer.distance(kind, caller.tenant, now_s) for name, peer in self._peers.items()}
        peers = {name: distance for name, distance in found.items() if distance is not None}
        session = _session(request, caller)
        at = self._away.region_of(session, now_s) if session is not None else None
        name = choose(await self._here_s(kind, caller.tenant), peers, slo_s, at)
        self._note(request, caller, name)
        return self._peers[name] if name is not None else None

    def _note(self, request: GenerationRequest, caller: Caller, region: str | None) -> None:
        """The request's session goes on there; None: here."""
        session = _session(request, caller)
        if session is not None:
            self._away.went(session, region, time.monotonic())


def _session(request: GenerationRequest, caller: Caller) -> str | None:
    """Sessions are the tenant's, whatever names others give theirs."""
    return f"{caller.tenant} {request.model} {request.session}" if request.session else None


class _Passage:
    """A peer's answer on its way to the client."""

    def __init__(self, path: str, region: str, send: Send) -> None:
        self._path = path
        self._region = region
        self._send = send

    async def through(self, answer: aiohttp.ClientResponse) -> None:
        passed = [
            (name.lower().encode(), value.encode("latin-1"))
            for name, value in answer.headers.items()
            if name.lower() in _BACK or name.lower().startswith(_BACK_PREFIXES)
        ]
        passed.append((b"x-tribes-region", self._region.encode()))
        await self._send({"type": "http.response.start", "status": answer.status, "headers": passed})
        try:
            async for chunk in answer.content.iter_any():
                await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        except (aiohttp.ClientError, TimeoutError):
            if answer.content_type != "text/event-stream":
                raise  # the client notices that the answer is cut
            message = f"region {self._region!r} failed while serving this request; send it again"
            last = as_event(ApiError(502, "region_failed", message), self._path)
        else:
            last = b""
        with contextlib.suppress(OSError):
            await self._send({"type": "http.response.body", "body": last})

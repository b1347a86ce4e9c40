"""Upstreams of one process: who may serve a request besides our replicas, and a request served by the first that does.

Owns: which upstream may be asked for whom (configuration, budgets, health), and what an answer costs. Must not know:
when requests of ours go there (courses.py), what goes over the wire (client.py).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

from cluster.config import ANY_UPSTREAM, TenantUpstreamConfig, TribesConfig, UpstreamUse
from cluster.scheduling import Lease, Ticket, TokenUsage
from cluster.state import Store
from cluster.vocabulary import UPSTREAM_PREFIX
from serve_apps.gateway.courses.course import Course, Deliver
from serve_apps.gateway.errors import ApiError
from serve_apps.gateway.upstreams.answer import UpstreamFailedError
from serve_apps.gateway.upstreams.books import BUSY_RETRY_S, UpstreamBooks
from serve_apps.gateway.upstreams.client import UpstreamClient
from serve_apps.messages import Grant

_PLAIN = TenantUpstreamConfig()


@dataclass(frozen=True, slots=True)
class Route:
    """An upstream that the configuration lets serve a request, and when."""

    client: UpstreamClient
    use: UpstreamUse
    own: TenantUpstreamConfig
    """What the tenant's section says about it."""


class Upstreams:
    """All of them. `accepted_work`: for what runs with nobody connected, which only some of them take."""

    def __init__(self, config: TribesConfig, store: Store, *, accepted_work: bool = False) -> None:
        self._configs = {n: c for n, c in config.upstreams.items() if c.accepted_work or not accepted_work}
        self._tenants = {name: tenant.upstreams for name, tenant in config.tenants.items()}
        self._alone = frozenset(model for model in config.served_models() if config.only_upstream(model))
        self._books = UpstreamBooks(store, config)
        self._session: aiohttp.ClientSession | None = None
        self._clients: dict[str, list[UpstreamClient]] = {}
        """By our model id, in the order of the configuration."""

    async def start(self) -> None:
        """Inside the event loop that serves."""
        if not self._configs:
            return
        # Apart from the engines': these answers may come compressed, and these servers are not ours.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        for name, config in self._configs.items():
            client = UpstreamClient(name, config, self._session)
            for model in config.models:
                self._clients.setdefault(model, []).append(client)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def alone(self, model: str) -> bool:
        """No deployment of ours serves the model."""
        return model in self._alone

    def routes(self, course: Course) -> list[Route]:
        """Who may serve this request as far as the configuration goes."""
        clients = self._clients.get(course.request.model)
        if clients is None:
            return []
        tenant, alone = course.caller.tenant, course.request.model in self._alone
        mine = self._tenants.get(tenant, {})
        routes = []
        for client in clients:
            config = client.config
            own = mine.get(client.name) or mine.get(ANY_UPSTREAM) or _PLAIN
            use = own.use or config.use
            allowed = config.tenants is None or tenant in config.tenants
            if alone and use != "never":
                use = "on_overload"  # there is nothing else to wait for
            if allowed and use != "never" and course.request.path in config.paths:
                routes.append(Route(client, use, own))
        return routes

    def is_open(self, route: Route) -> bool:
        """As far as can be told without asking anybody."""
        return not route.client.full and route.client.closed_for_s() == 0.0

    async def serve(self, course: Course, deliver: Deliver, routes: list[Route]) -> None:
        """Have the first of the routes serve the request that can. Raises ApiError with the last one's reason; if
        `course.begun`, that ends the answer.
        """
        error = ApiError(503, "upstream_unavailable", "no upstream may serve this request", retry_after_s=BUSY_RETRY_S)
        await self._books.look()
        for route in routes:
            client = route.client
            closed = self._closed(route, course)
            if closed is not None:
                error = closed
                continue
            try:
                await self._paid(route, course, deliver)
            except UpstreamFailedError as failed:
                error = _told(client, failed)
            except ApiError as refused:
                error = refused
            else:
                return
            if course.begun:
                break
        raise error

    def _closed(self, route: Route, course: Course) -> ApiError | None:
        client = route.client
        wait_s = BUSY_RETRY_S if client.full else client.closed_for_s()
        if wait_s:
            message = f"upstream {client.name!r} is {'busy' if client.full else 'left alone after failures'}; try later"
            return ApiError(503, "upstream_unavailable", message, retry_after_s=wait_s)
        refusal = self._books.refusal(client.name, client.config, route.own, course.caller.tenant, course.request)
        return ApiError.of_refusal(refusal) if refusal is not None else None

    async def _paid(self, route: Route, course: Course, deliver: Deliver) -> None:
        """One try, counted in the books and on the bill."""
        client, tenant, before = route.client, course.caller.tenant, course.grant
        stake = self._books.begin(client.name, client.config, tenant, course.request)
        course.usage = None
        grant = course.grant = self._grant(client, course)
        course.stall = course.continuation = None  # of replicas
        try:
            await client.ask(course, deliver)
        except asyncio.CancelledError:
            # The client left: what the upstream has read and written until then is not free.
            course.usage = course.usage or TokenUsage(course.request.prompt_tokens)
            raise
        except (ApiError, UpstreamFailedError):
            if not course.begun:
                course.grant, course.usage = before, None
            raise
        finally:
            usage = course.usage if course.grant is grant else None
            if usage is not None:
                prices = client.config.usd_per_mtok
                course.upstream_usd = prices.usd(usage.uncached_tokens, usage.cached_tokens, usage.output_tokens)
            self._books.end(stake, usage, course.upstream_usd)

    def _grant(self, client: UpstreamClient, course: Course) -> Grant:
        """Stands for a lease where others ask who serves: nothing of ours is taken."""
        request, name = course.request, UPSTREAM_PREFIX + client.name
        ticket = Ticket(
            ticket_id=course.request_id,
            owner="",
            tenant=course.caller.tenant,
            request_class=request.request_class,
            prompt_tokens=request.prompt_tokens,
            max_output_tokens=request.max_output_tokens,
            arrived_at_s=course.arrived_at_s,
        )
        lease = Lease(f"{name}.{course.request_id}", ticket, name, time.time())
        return Grant(lease, name, "", "", self._books.rate_limits(course.caller.tenant))

    def status(self) -> list[dict[str, Any]]:
        """For people: how each stands, as this process sees it."""
        clients = {client.name: client for group in self._clients.values() for client in group}
        return [
            {
                "upstream": name,
                "running": client.running,
                "closed_for_s": client.closed_for_s(),
                "usd_today": self._books.spending.usd(name),
                "usd_per_day": client.config.usd_per_day,
            }
            for name, client in clients.items()
        ]


def _told(client: UpstreamClient, failed: UpstreamFailedError) -> ApiError:
    """What a client hears of it: the reason is for our log."""
    if failed.pause_s is not None:
        message = f"upstream {client.name!r} cannot serve requests now; try later"
        return ApiError(503, "upstream_unavailable", message, retry_after_s=max(BUSY_RETRY_S, failed.pause_s))
    message = f"upstream {client.name!r} failed while serving this request; send it again"
    return ApiError(502, "upstream_failed", message, retry_after_s=BUSY_RETRY_S)

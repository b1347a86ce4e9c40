"""One upstream as a gateway process talks to it: a request out, an answer back, and what its failures mean.

    400, 413, 422          the request itself is at fault: the upstream's message, cleaned
    401, 402, 403          our key or account is: left alone for a minute
    404, 405, 501          it has no such model or path: another may
    429, 503               left alone as long as it asks for (`Retry-After`), for at most five minutes
    others, silence        left alone after five in a row: 5 s, 10 s, ... five minutes

Nothing of the client's headers goes out, and of the upstream's answer only the body comes in. Redirects are not
followed: they would take the key along. Owns: the connection, the key, the breaker. Must not know: budgets, policies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import aiohttp

from cluster.config import UpstreamConfig
from serve_apps.gateway.courses.breakers import Breakers
from serve_apps.gateway.courses.course import Course, Deliver
from serve_apps.gateway.courses.engine_call import ReplicaFailedError
from serve_apps.gateway.errors import ApiError
from serve_apps.gateway.upstreams.answer import UpstreamAnswer, UpstreamFailedError
from serve_apps.gateway.upstreams.body import upstream_body
from serve_apps.gateway.upstreams.errors import failure_of
from serve_apps.gateway.upstreams.secrets import NoSecretError, Secret

FAILURES = 5
FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 300.0
NO_KEY_PAUSE_S = 30.0
log = logging.getLogger(__name__)


class UpstreamClient:
    """Sends requests to one upstream."""

    def __init__(self, name: str, config: UpstreamConfig, session: aiohttp.ClientSession) -> None:
        self.name = name
        self.config = config
        self.running = 0
        self._session = session
        self._secret = Secret(config.api_key) if config.api_key else None
        self._breakers = Breakers(FAILURES, FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._alone_until_s = float("-inf")
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=config.connect_timeout_s, sock_read=config.idle_timeout_s
        )

    def closed_for_s(self) -> float:
        """Seconds until it is worth asking it; 0.0: now."""
        now_s = time.monotonic()
        if now_s < self._alone_until_s:
            return self._alone_until_s - now_s
        return FIRST_PAUSE_S if self._breakers.open(now_s) else 0.0

    @property
    def full(self) -> bool:
        return self.running >= self.config.max_concurrent

    async def ask(self, course: Course, deliver: Deliver) -> None:
        """One try. Raises ApiError where the request is at fault, UpstreamFailedError where the upstream is; after the
        first byte (`course.begun`) that is the end of the answer.
        """
        body = upstream_body(course.request, self.config.models[course.request.model], self.config.drop)
        began_at_s = time.monotonic()
        self.running += 1
        try:
            await self._once(course, body, deliver)
        except ApiError:
            self._breakers.succeeded(self.name, began_at_s)  # it works: it can tell what is wrong with the request
            raise
        except UpstreamFailedError as failed:
            self._note(failed, began_at_s)
            raise
        except (aiohttp.ClientError, ReplicaFailedError, TimeoutError) as error:
            unheard = UpstreamFailedError(type(error).__name__)  # not its text, which may have the address in it
            self._note(unheard, began_at_s)
            raise unheard from None
        finally:
            self.running -= 1
        self._breakers.succeeded(self.name, began_at_s)

    def _note(self, failed: UpstreamFailedError, began_at_s: float) -> None:
        log.warning("upstream %r did not serve a request: %s", self.name, failed)
        now_s = time.monotonic()
        if failed.pause_s is not None:
            self._alone_until_s = max(self._alone_until_s, now_s + min(failed.pause_s, LONGEST_PAUSE_S))
        elif failed.counts:
            self._breakers.failed(self.name, began_at_s, now_s)

    async def _once(self, course: Course, body: bytes, deliver: Deliver) -> None:
        request, config = course.request, self.config
        key = self._key()
        headers = {"Content-Type": "application/json", "User-Agent": "tribes"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        call = self._session.post(
            config.url_of(request.path), data=body, headers=headers, timeout=self._timeout, allow_redirects=False
        )
        # A whole answer has no first byte before it is finished.
        async with asyncio.timeout(config.first_byte_timeout_s if request.stream else None) as scope, call as answer:
            course.status = answer.status
            if answer.status != 200:
                raise await failure_of(answer, request.path, (key, config.base_url))
            seen = UpstreamAnswer(self.name, answer, request.prompt_tokens, lambda: _lift(scope))
            try:
                await deliver(course, seen)
            finally:
                course.usage = seen.usage or course.usage

    def _key(self) -> str | None:
        try:
            return self._secret.value() if self._secret else None
        except NoSecretError as error:
            raise UpstreamFailedError(str(error), pause_s=NO_KEY_PAUSE_S) from None


def _lift(scope: asyncio.Timeout) -> None:
    """The first byte is here: from now on only silence ends the answer."""
    with contextlib.suppress(RuntimeError):  # it is ending already
        scope.reschedule(None)

"""One other region as a gateway process sees it: how it is, and a request sent there.

It is asked once a second for what it expects (`GET /tribes/region`), which also measures the way there, and is healthy
while the last answer is good and fresh. Of the streams that were sent there and have not begun, the oldest speaks, too:
an answer that does not come says more than the last probe.

Owns: the connection, probes, keys. Must not know: which region is chosen.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from cluster.config import PeerConfig, RegionConfig
from cluster.vocabulary import RequestClass
from serve_apps.gateway.regions.choice import Distance
from serve_apps.gateway.regions.load import Kind
from serve_apps.gateway.upstreams.secrets import NoSecretError, Secret

FRESH_PROBES = 3
"""A peer whose last good answer is older than so many probes is not healthy."""
TIMEOUT_S = 2.0
"""Of a probe, and of connecting with a request."""
NEWEST_RTT_WEIGHT = 0.3
BARRED_S = 60.0
FORWARDED_FROM = "x-tribes-forwarded-from"
_REFUSED = (401, 403, 404, 429)
_CLASSES = {c.value: c for c in RequestClass}
log = logging.getLogger(__name__)


class PeerRefusedError(Exception):
    """The peer did not take the request, and nothing of an answer has come: it can run here. The text is ours."""


@dataclass(frozen=True, slots=True)
class _Expected:
    """Seconds to the first byte, as the peer says: for tenants who wait there, and for others."""

    others: float
    tenants: Mapping[str, float]


class RegionPeer:
    """Probes and sends."""

    def __init__(
        self, name: str, config: PeerConfig, here: RegionConfig, silence_s: float, session: aiohttp.ClientSession
    ) -> None:
        """`silence_s`: for how long an answer may bring nothing."""
        self.name = name
        self.forwarded = 0
        self._config = config
        self._here = here.name
        self._interval_s = here.probe_interval_s
        self._session = session
        self._probe_key = Secret(config.probe_key)
        self._keys = {tenant: Secret(ref) for tenant, ref in config.keys.items()}
        self._expected: dict[Kind, _Expected] = {}
        self._good_at_s = float("-inf")
        self._rtt_s: float | None = None
        self._unbegun: dict[Kind, dict[int, float]] = {}
        self._numbers = 0
        self._barred: dict[str, float] = {}
        """Tenants whose key does not work there, and until when that is believed."""
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_S, sock_read=silence_s)

    @property
    def rtt_s(self) -> float:
        own = self._config.rtt_ms
        return own / 1000 if own is not None else self._rtt_s or 0.0

    def healthy(self, now_s: float) -> bool:
        return now_s - self._good_at_s <= FRESH_PROBES * self._interval_s + TIMEOUT_S

    def distance(self, kind: Kind, tenant: str, now_s: float) -> Distance | None:
        """None where it cannot serve this tenant's request."""
        expected = self._expected.get(kind)
        if expected is None or not self.healthy(now_s) or self._barred.get(tenant, 0.0) > now_s:
            return None
        waiting = self._unbegun.get(kind)
        expected_s = expected.tenants.get(tenant, expected.others)
        oldest_s = now_s - next(iter(waiting.values())) if waiting else 0.0
        return Distance(max(expected_s, oldest_s - self.rtt_s), self.rtt_s)

    def status(self, now_s: float) -> dict[str, Any]:
        return {
            "region": self.name,
            "healthy": self.healthy(now_s),
            "rtt_ms": round(1000 * self.rtt_s, 1),
            "forwarded": self.forwarded,
        }

    # --- probes ---------------------------------------------------------------------------------------------------

    async def probe_forever(self) -> None:
        """Bounded waits only; a change is logged once."""
        well = True
        while True:
            try:
                await self._probe()
                well = True
            except Exception as error:  # whatever it says, it is asked again
                if well:
                    # Our own texts have no key in them; those of others may have an address.
                    why = error if isinstance(error, NoSecretError | PeerRefusedError) else type(error).__name__
                    log.warning("region %r does not say how it is (%s): nothing is sent there", self.name, why)
                well = False
            await asyncio.sleep(self._interval_s)

    async def _probe(self) -> None:
        headers = {"Authorization": f"Bearer {self._probe_key.value()}"}
        began_s = time.monotonic()
        async with self._session.get(
            self._url("/tribes/region"),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            allow_redirects=False,
        ) as answer:
            body = await answer.read()
            if answer.status != 200:
                cure = ": `probe_key` must be a key of an operator there" if answer.status in (401, 403) else ""
                raise PeerRefusedError(f"it answered {answer.status}{cure}")
        took_s = time.monotonic() - began_s
        self._expected = {
            (model, _CLASSES[name]): _Expected(float(told["others"]), {t: float(s) for t, s in told["tenants"].items()})
            for model, classes in orjson.loads(body)["models"].items()
            for name, told in classes.items()
            if name in _CLASSES
        }
        self._rtt_s = took_s if self._rtt_s is None else self._rtt_s + NEWEST_RTT_WEIGHT * (took_s - self._rtt_s)
        self._good_at_s = time.monotonic()

    # --- requests -------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def ask(
        self, path: str, raw: bytes, headers: Mapping[str, str], kind: Kind, tenant: str, stream: bool
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The peer's answer, once its head is here. Raises PeerRefusedError where the peer did not take the request."""
        with self._counted(kind, stream):
            answer = await self._post(path, raw, headers, tenant)
        async with answer:
            if answer.status >= 500 or answer.status in _REFUSED:
                if answer.status in (401, 403):
                    self._bar(tenant)
                raise PeerRefusedError(f"it answered {answer.status}")
            self.forwarded += 1
            yield answer

    async def _post(self, path: str, raw: bytes, headers: Mapping[str, str], tenant: str) -> aiohttp.ClientResponse:
        # Its bytes are passed on as they come, without their encoding.
        own = {"content-type": "application/json", "accept-encoding": "identity", FORWARDED_FROM: self._here}
        sent = {**headers, **own}
        try:
            if tenant in self._keys:
                sent["authorization"] = f"Bearer {self._keys[tenant].value()}"
            return await self._session.post(
                self._url(path), data=raw, headers=sent, timeout=self._timeout, allow_redirects=False
            )
        except NoSecretError as error:
            self._bar(tenant)
            log.warning("tenant %r has no key for region %r: %s", tenant, self.name, error)
            raise PeerRefusedError("no key") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            self._good_at_s = float("-inf")  # until the next good probe
            raise PeerRefusedError(type(error).__name__) from None

    @contextlib.contextmanager
    def _counted(self, kind: Kind, stream: bool) -> Iterator[None]:
        """A stream among those that have not begun; a whole answer has no head before it is finished."""
        self._numbers += 1
        number, waiting = self._numbers, self._unbegun.setdefault(kind, {})
        if stream:
            waiting[number] = time.monotonic()
        try:
            yield
        finally:
            waiting.pop(number, None)

    def _bar(self, tenant: str) -> None:
        now_s = time.monotonic()
        self._barred = {name: until_s for name, until_s in self._barred.items() if until_s > now_s}
        self._barred[tenant] = now_s + BARRED_S

    def _url(self, path: str) -> str:
        """Of one of our paths there: the configured address has the version in it."""
        return self._config.base_url.removesuffix("/v1") + path

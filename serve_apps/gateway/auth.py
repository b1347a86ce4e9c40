"""API key -> tenant. Owns: a small cache over the state store, so that a request costs no query.

An entry is used for `FRESH_S`, refreshed beside the request that meets it until `TRUSTED_S`, and before that request
after it: a revoked key works for `TRUSTED_S` at most. While the store is away an entry holds for `STALE_S`.
Must not know: HTTP beyond the header.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from cluster.state import Store, hash_key
from serve_apps.gateway.errors import ApiError

FRESH_S = 2.0
TRUSTED_S = 5.0
STALE_S = 60.0
MAX_ENTRIES = 50_000
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request."""

    tenant: str
    key_id: str
    default_tier: str = "auto"


class KeyRing:
    """Looks callers up by the SHA-256 of their key."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cache: OrderedDict[str, tuple[Caller | None, float]] = OrderedDict()
        self._refreshing: dict[str, asyncio.Task[Caller | None]] = {}

    async def caller(self, authorization: bytes | None) -> Caller:
        """The caller behind an `Authorization` header; raises ApiError 401."""
        scheme, _, key = (authorization or b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            message = "no API key: send the header `Authorization: Bearer KEY` (`tribes keys create` makes one)"
            raise ApiError(401, "invalid_api_key", message)
        key_hash = hash_key(key.strip())
        caller, at_s = self._cache.get(key_hash, (None, 0.0))
        age_s = time.monotonic() - at_s
        if caller is None or age_s > TRUSTED_S:
            caller = await self._looked_up(key_hash, caller if age_s <= STALE_S else None)
        elif age_s > FRESH_S:
            self._refresh(key_hash)
        if caller is None:
            raise ApiError(401, "invalid_api_key", "incorrect API key: `tribes keys list` shows the keys that work")
        return caller

    async def _looked_up(self, key_hash: str, known: Caller | None) -> Caller | None:
        """The caller as the store has it, or `known` while the store is away."""
        try:
            # Shielded: others wait for the same look-up, and must not end with a client that gives up.
            return await asyncio.shield(self._refresh(key_hash))
        except SQLAlchemyError:
            if known is None:
                message = "the state store is away, so no API key can be looked up"
                raise ApiError(503, "store_unavailable", message, retry_after_s=1.0) from None
            return known

    def _refresh(self, key_hash: str) -> asyncio.Task[Caller | None]:
        task = self._refreshing.get(key_hash)
        if task is None:
            task = self._refreshing[key_hash] = asyncio.create_task(self._look_up(key_hash))
            task.add_done_callback(lambda done: self._refreshed(key_hash, done))
        return task

    def _refreshed(self, key_hash: str, task: asyncio.Task[Caller | None]) -> None:
        del self._refreshing[key_hash]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("cannot look up an API key (%s)", type(error).__name__)

    async def _look_up(self, key_hash: str) -> Caller | None:
        caller = await asyncio.to_thread(self._query, key_hash)
        if caller is None:
            # Not remembered: a key made a moment ago must work, and guessing keys must not fill the cache.
            self._cache.pop(key_hash, None)
        else:
            self._cache[key_hash] = (caller, time.monotonic())
            self._cache.move_to_end(key_hash)
            if len(self._cache) > MAX_ENTRIES:
                self._cache.popitem(last=False)
        return caller

    def _query(self, key_hash: str) -> Caller | None:
        key = self._store.find_key(key_hash)
        if key is None:
            return None
        policy = self._store.tenants().get(key.tenant, {})
        return Caller(key.tenant, key.key_id, str(policy.get("default_tier", "auto")))

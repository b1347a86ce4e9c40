"""API key -> tenant. Owns: a small cache over the state store, so that a request costs no query.

An entry is used for `FRESH_S`, refreshed in the background after that, and dropped after `STALE_S`: a revoked key works
`FRESH_S` plus one request longer, and a store that is away for a moment harms nobody. Must not know: HTTP beyond the
header.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass

from cluster.state import Store, hash_key
from serve_apps.gateway.errors import ApiError

FRESH_S = 2.0
STALE_S = 60.0
MAX_ENTRIES = 50_000


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
        if caller is None or age_s > STALE_S:
            caller = await self._refresh(key_hash)
        elif age_s > FRESH_S:
            _ = self._refresh(key_hash)
        if caller is None:
            raise ApiError(401, "invalid_api_key", "incorrect API key: `tribes keys list` shows the keys that work")
        return caller

    def _refresh(self, key_hash: str) -> asyncio.Task[Caller | None]:
        task = self._refreshing.get(key_hash)
        if task is None:
            task = self._refreshing[key_hash] = asyncio.create_task(self._look_up(key_hash))
            task.add_done_callback(lambda _: self._refreshing.pop(key_hash, None))
        return task

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

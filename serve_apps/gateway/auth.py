"""API key -> tenant. Owns: a small cache over the state store, so that a request costs no query.

An entry is used for `FRESH_S`, refreshed beside the request that meets it until `TRUSTED_S`, and before that request
after it: a revoked key works for `TRUSTED_S` at most. While the store is away an entry holds for `STALE_S`.
Guessed keys must not reach the store as fast as they come: a key that was unknown stays so for `UNKNOWN_S`, and
strangers are looked up a few at a time, with a bound on those who wait. Known keys never wait for strangers.
Must not know: HTTP beyond the header.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from cluster.state import Store, hash_key
from cluster.vocabulary import DEFAULT_TENANT
from serve_apps.gateway.errors import ApiError

FRESH_S = 2.0
TRUSTED_S = 5.0
STALE_S = 60.0
MAX_ENTRIES = 50_000
UNKNOWN_S = 1.0
MAX_UNKNOWN = 10_000
STRANGERS_AT_ONCE = 2
"""Queries share a few threads with everything else that the gateway asks the store."""
STRANGERS_WAITING = 256
_Entry = TypeVar("_Entry")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request."""

    tenant: str
    key_id: str
    default_tier: str = "auto"
    operator: bool = False
    """May see what names other tenants."""


class KeyRing:
    """Looks callers up by the SHA-256 of their key."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cache: OrderedDict[str, tuple[Caller | None, float]] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._strangers = asyncio.Semaphore(STRANGERS_AT_ONCE)
        self._strangers_waiting = 0
        self._refreshing: dict[str, asyncio.Task[Caller | None]] = {}

    async def caller(self, authorization: bytes | None, api_key: bytes | None = None) -> Caller:
        """The caller behind an `Authorization` header, or else behind `x-api-key`, which Anthropic's clients send.
        Raises ApiError 401.
        """
        key = _bearer(authorization) or (api_key or b"").decode("latin-1").strip()
        if not key:
            message = (
                "no API key: send the header `Authorization: Bearer KEY`, or `x-api-key: KEY` to Anthropic's paths "
                "(`tribes keys create` makes one)"
            )
            raise ApiError(401, "invalid_api_key", message)
        key_hash = hash_key(key)
        caller, at_s = self._cache.get(key_hash, (None, 0.0))
        age_s = time.monotonic() - at_s
        if caller is None and self._is_unknown(key_hash):
            raise _incorrect()
        if caller is None or age_s > TRUSTED_S:
            caller = await self._looked_up(key_hash, caller if age_s <= STALE_S else None)
        elif age_s > FRESH_S:
            self._refresh(key_hash)
        if caller is None:
            raise _incorrect()
        return caller

    def _is_unknown(self, key_hash: str) -> bool:
        asked_at_s = self._unknown.get(key_hash)
        return asked_at_s is not None and time.monotonic() - asked_at_s < UNKNOWN_S

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
        if not task.cancelled() and isinstance(error := task.exception(), SQLAlchemyError):
            log.warning("cannot look up an API key (%s)", type(error).__name__)

    async def _look_up(self, key_hash: str) -> Caller | None:
        known = key_hash in self._cache
        caller = await asyncio.to_thread(self._query, key_hash) if known else await self._stranger(key_hash)
        if caller is None:
            # Apart from the keys that work, so that guesses never push one of those out.
            self._cache.pop(key_hash, None)
            _remember(self._unknown, key_hash, time.monotonic(), MAX_UNKNOWN)
        else:
            self._unknown.pop(key_hash, None)
            _remember(self._cache, key_hash, (caller, time.monotonic()), MAX_ENTRIES)
        return caller

    async def _stranger(self, key_hash: str) -> Caller | None:
        if self._strangers_waiting >= STRANGERS_WAITING:
            message = "too many unknown API keys are being looked up; try again"
            raise ApiError(503, "too_many_unknown_keys", message, retry_after_s=1.0)
        self._strangers_waiting += 1
        try:
            async with self._strangers:
                return await asyncio.to_thread(self._query, key_hash)
        finally:
            self._strangers_waiting -= 1

    def _query(self, key_hash: str) -> Caller | None:
        key = self._store.find_key(key_hash)
        if key is None:
            return None
        policy = self._store.tenant_policy(key.tenant)
        operator = policy.get("operator")
        if operator is None:
            operator = key.tenant == DEFAULT_TENANT
        return Caller(key.tenant, key.key_id, str(policy.get("default_tier", "auto")), bool(operator))


def _bearer(authorization: bytes | None) -> str:
    """The key in an `Authorization` header; empty where there is none."""
    scheme, _, key = (authorization or b"").decode("latin-1").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _incorrect() -> ApiError:
    return ApiError(401, "invalid_api_key", "incorrect API key: `tribes keys list` shows the keys that work")


def _remember(entries: OrderedDict[str, _Entry], key: str, value: _Entry, most: int) -> None:
    entries[key] = value
    entries.move_to_end(key)
    if len(entries) > most:
        entries.popitem(last=False)

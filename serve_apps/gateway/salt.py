"""The salt of the engines' prefix caches, so that no tenant can tell from the timing what a neighbour has asked.

A cached prefix is found again only under the salt it was computed with. The salt is the gateway's: a hash of the
tenant (or key) and of the salt that the client named, if it named one, so clients can divide their own cache further
but never join another's.

Owns: the salt's value and its place in the body. Must not know: which engine takes it (`cluster/engines`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson

from cluster.config import CacheSalt
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.errors import ApiError

FIELD = "cache_salt"
# Hexadecimal: vLLM takes at most 128 characters, and not all of them.
_SALT_BYTES = 24


def cache_salt(mode: CacheSalt, caller: Caller, parsed: Mapping[str, Any]) -> str | None:
    """The salt for one request; None when salting is off, where a client's own salt goes to the engine as it is."""
    if mode == "off":
        return None
    own = parsed.get(FIELD)
    if own is not None and (not isinstance(own, str) or not own):
        raise ApiError(400, "invalid_cache_salt", "`cache_salt` must be a text that is not empty", param=FIELD)
    key = caller.key_id if mode == "key" else None
    return _salt(caller.tenant, key) if own is None else _hashed(caller.tenant, key, own)


def _hashed(tenant: str, key: str | None, own: str | None) -> str:
    # As JSON, so that no two different triples read the same.
    return hashlib.blake2b(orjson.dumps([tenant, key, own]), digest_size=_SALT_BYTES, person=b"tribes-salt").hexdigest()


@lru_cache(maxsize=4096)
def _salt(tenant: str, key: str | None) -> str:
    """Of those who name no salt: the same one for every request."""
    return _hashed(tenant, key, None)


def with_salt(body: bytes, salt: str) -> bytes:
    """The body with the salt as its first member. It must be an object with members and none of this name."""
    start = body.index(b"{") + 1
    return body[:start] + b'"' + FIELD.encode() + b'":"' + salt.encode() + b'",' + body[start:]

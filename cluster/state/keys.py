"""API keys: how they look and how they are stored. Owns: key format and hashing. Must not know: tables, HTTP."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

KEY_PREFIX = "sk-tribes-"


class KeyNotFoundError(LookupError):
    """No such key id."""


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A key as lists show it and as the gateway uses it; never the key itself."""

    key_id: str
    tenant: str
    created_at_s: float
    revoked: bool = False


def new_key() -> tuple[str, str]:
    """(key id, secret key); the secret is shown once and only its hash is kept."""
    return secrets.token_hex(6), KEY_PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()

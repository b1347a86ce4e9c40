"""Ids of what the API creates. Owns: their form. Must not know: tables, HTTP.

`<kind><milliseconds since 1970, 12 hex digits><80 random bits, 20 hex digits>`: sorted by id is sorted by time, so a
cursor of a list works even when what it names is gone, and nobody guesses another's.
"""

from __future__ import annotations

import hashlib
import re
import secrets

_FORM = re.compile(r"[a-z_-]+[0-9a-f]{32}")


def new_id(kind: str, now_s: float) -> str:
    return f"{kind}{int(now_s * 1000):012x}{secrets.token_hex(10)}"


def derived_id(kind: str, at_s: float, *parts: str) -> str:
    """The same id for the same parts: work that is done again after a crash makes nothing twice."""
    return f"{kind}{int(at_s * 1000):012x}{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:20]}"


def is_id(kind: str, text: str) -> bool:
    return text.startswith(kind) and _FORM.fullmatch(text) is not None

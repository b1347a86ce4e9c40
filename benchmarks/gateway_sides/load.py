"""What the load generator's two loops share: where requests go, and what comes of a load.

The generator is this process and one event loop. The garbage collector rests while a load runs, and what it all costs
is reported with every run (`client_cpu_s_per_1000`). Owns: the bytes of a request. Must not know: which case it is.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import orjson

from benchmarks.gateway_sides.connection import Answer

PATIENCE_S = 20.0
"""After the end of a load, for answers that are on their way."""
CLOSING_S = 0.02


@dataclass(frozen=True, slots=True)
class Door:
    """Where requests go, as whom, and for which model. Several keys: their tenants take turns."""

    base_url: str
    api_keys: tuple[str, ...]
    model: str

    def requests(self, prompt: str) -> list[bytes]:
        """The bytes of a request, one for each key."""
        parts = urlsplit(self.base_url)
        message = {"role": "user", "content": prompt}
        body = orjson.dumps({"model": self.model, "messages": [message], "stream": True, "max_tokens": 64})
        return [
            (
                f"POST {parts.path}/v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n"
                f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nAccept: */*\r\n\r\n"
            ).encode()
            + body
            for key in self.api_keys
        ]

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.base_url)
        assert parts.hostname is not None and parts.port is not None
        return parts.hostname, parts.port


@dataclass(slots=True)
class Outcome:
    """All answers of one load."""

    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0
    client_cpu_s: float = 0.0
    tokens: int = 0
    """Only when asked for, and only those that came while the load ran."""
    late_s: list[float] = field(default_factory=list)
    """By how much requests of an open loop went out after their time."""


@contextlib.contextmanager
def undisturbed(outcome: Outcome) -> Iterator[None]:
    """No collection of garbage meanwhile; what this process spends is noted."""
    gc.collect()
    gc.disable()
    spent_s = time.process_time()
    try:
        yield
    finally:
        outcome.client_cpu_s = time.process_time() - spent_s
        gc.enable()

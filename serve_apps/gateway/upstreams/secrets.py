"""Keys to upstreams, read where the configuration says they are, when they are needed.

Owns: the reading. A key is in no configuration, log, error or `repr`: it goes from here into one request's header.
"""

from __future__ import annotations

import os
import time

from cluster.config import SecretRef

FRESH_S = 10.0
"""A file is read again after this long, so that a key can be changed while gateways run."""


class NoSecretError(LookupError):
    """There is no usable key. The text says where it should be, and nothing of what is there."""


class Secret:
    """The key that a reference names."""

    def __init__(self, ref: SecretRef) -> None:
        self._ref = ref
        self._read: tuple[float, str] | None = None

    def value(self) -> str:
        """Raises NoSecretError."""
        if self._ref.env is not None:
            return _checked(os.environ.get(self._ref.env, ""), f"the environment variable {self._ref.env}")
        now_s = time.monotonic()
        if self._read is None or now_s - self._read[0] > FRESH_S:
            assert self._ref.file is not None
            try:
                text = self._ref.file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise NoSecretError(f"the file of its key cannot be read ({type(error).__name__})") from None
            self._read = (now_s, text)
        return _checked(self._read[1], "the file of its key")


def _checked(text: str, where: str) -> str:
    key = text.strip()
    if not key:
        raise NoSecretError(f"{where} is empty or not there, on the node where this gateway runs")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise NoSecretError(f"{where} has something else than one key in it")
    return key

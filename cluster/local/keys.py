"""The local default key. Owns: its file (mode 0600) beside the state. Must not know: the gateway."""

from __future__ import annotations

import os
from pathlib import Path

from cluster.config import TribesConfig
from cluster.state import Store
from cluster.state.keys import new_key
from cluster.vocabulary import DEFAULT_TENANT


def key_path(config: TribesConfig) -> Path:
    return config.paths.data / "default.key"


def default_key(config: TribesConfig, store: Store) -> str:
    """The key of tenant `default` on this machine: made once, then read from its file."""
    path = key_path(config)
    try:
        secret = path.read_text().strip()
    except FileNotFoundError:
        _, secret = new_key()
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secret + "\n")
    store.ensure_key(secret, DEFAULT_TENANT)
    return secret

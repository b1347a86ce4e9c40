"""Alembic, run by the program on its own connection. Owns: nothing but this call. Must not know: tables."""

from __future__ import annotations

import threading

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from cluster.state.schema import VERSIONS

_LOCK = threading.Lock()  # Alembic keeps what it is doing in variables of its module


def upgrade(connection: Connection, to: str = "head") -> None:
    """Every step that is due, in the transaction that the connection is in."""
    with _LOCK:
        command.upgrade(make_config(connection), to)


def make_config(connection: Connection) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(VERSIONS.parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config

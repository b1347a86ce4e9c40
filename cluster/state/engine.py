"""A database from its URL. Owns: SQLAlchemy's engine and SQLite's settings. Must not know: tables, queries.

SQLite runs in WAL mode with a busy timeout, so that several processes of one machine share it; a cluster of several
nodes takes PostgreSQL by URL.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url

BUSY_TIMEOUT_S = 30
WAL_RETRY_S = 0.05


def make_engine(url: str) -> Engine:
    """Opens no connection; makes the folder of an SQLite file. Errors tell no parameters, so logs have no prompts."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True, hide_parameters=True)
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _tune(connection: Any, _record: object) -> None:
        _use_wal(connection)
        # Survives the death of processes; only a power cut may lose the last commits.
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine


def _use_wal(connection: Any) -> None:
    """Two processes that turn the mode of a new file at once: SQLite refuses one at once, whatever its busy timeout."""
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline_s:
                raise
            time.sleep(WAL_RETRY_S)
        else:
            return

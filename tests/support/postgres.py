"""A PostgreSQL server of one's own for tests. Owns: its folder, port and end. Must not know: what is stored.

The server refuses to run as root: then it runs as user `postgres`, which Debian's package makes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine

from tests.support.stack import free_ports

_FOLDERS = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]


def server_program(name: str) -> str | None:
    """`initdb` or `postgres`, from PATH or Debian's folder; None where PostgreSQL is not installed."""
    return shutil.which(name, path=os.pathsep.join([*map(str, _FOLDERS), os.environ.get("PATH", "")]))


@contextmanager
def postgres_url() -> Iterator[str]:
    """A running, empty server's SQLAlchemy URL."""
    initdb, postgres = server_program("initdb"), server_program("postgres")
    assert initdb and postgres
    user = "postgres" if os.geteuid() == 0 else None
    (port,) = free_ports(1)
    folder = tempfile.mkdtemp(prefix="tribes-postgres-")
    try:
        if user:
            shutil.chown(folder, user)
        data = f"{folder}/data"
        command = [initdb, "-D", data, "-U", "tribes", "--auth=trust", "--no-sync"]
        subprocess.run(command, user=user, check=True, capture_output=True, cwd=folder, timeout=120)
        options = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
        with Path(folder, "log").open("wb") as log:
            server = subprocess.Popen(
                [postgres, "-D", data, "-p", str(port), *options], user=user, stdout=log, stderr=log, cwd=folder
            )
        try:
            _wait_ready(server, Path(folder, "log"))
            yield f"postgresql+psycopg://tribes@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # does not wait for clients to leave, as SIGTERM would
            server.wait(timeout=30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def emptied(url: str) -> str:
    """The same URL, of a database with nothing in it."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()
    return url


def _wait_ready(server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while "ready to accept connections" not in log.read_text(errors="replace"):
        assert server.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.05)

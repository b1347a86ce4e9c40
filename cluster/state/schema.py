"""The store's tables, brought to the version that this code needs. Owns: versions, and who may change tables when.

Must not know: what the tables hold (tables.py), how one version becomes the next (migrations/).

- An empty database gets all tables from the models and the newest version's mark. A test holds models and migrations
  to the same tables, and Alembic, which takes half a second to import, is loaded only where something must change.
- An older one is migrated by Alembic. So is one without a mark, made before there were versions: the first migration
  leaves tables alone that exist.
- One that is newer than the code is refused: what it would write might be wrong.

Several processes may do this at once. One changes, in one transaction; the others wait for it, then find all done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Column, Connection, Engine, MetaData, String, Table, insert, inspect, select

from cluster.state import deferred_tables, tables

VERSIONS = Path(__file__).parent / "migrations" / "versions"
LOCK_WAIT_S = 60
_LOCK = 0x7472696265  # any number that nobody else of this database locks
_MARK = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))
"""Alembic's own table, as Alembic makes it."""
_FIRST_TABLES = {"tenants", "usage"}
_MODULES = (tables, deferred_tables)
"""Every module with tables: one that is never imported is missing in the models' list of tables."""


class StoreVersionError(RuntimeError):
    """The store was written by a newer version of this code."""


def bring_up(engine: Engine) -> None:
    """Create or migrate what must be; harmless when all is there."""
    with engine.connect() as connection:
        if _version(connection) == versions()[-1]:
            return
    with _alone(engine) as connection:
        version = _version(connection)
        if version == versions()[-1]:
            return
        if version is None and not _FIRST_TABLES & {*inspect(connection).get_table_names()}:
            _create_all(connection)
        elif version is None or version in versions():
            from cluster.state.migrations.run import upgrade

            upgrade(connection)
        else:
            raise StoreVersionError(
                f"the state store has schema version {version}, and this code knows versions up to {versions()[-1]}: "
                "run the newer code that made it, or name another store (state.url)"
            )


def versions() -> list[str]:
    """All schema versions, oldest first: the numbers that the files of migrations begin with."""
    return sorted(path.name.partition("_")[0] for path in VERSIONS.glob("[0-9]*_*.py"))


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(_MARK.name):
        return None
    found: str | None = connection.scalar(select(_MARK.c.version_num))
    return found


def _create_all(connection: Connection) -> None:
    tables.Base.metadata.create_all(connection)
    _MARK.create(connection)
    connection.execute(insert(_MARK).values(version_num=versions()[-1]))


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """One transaction that no other process's runs beside; the wait for theirs is bounded."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            # The driver would begin only at the first row that is written, which is after tables are created.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_WAIT_S}s'")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        yield connection
        connection.commit()

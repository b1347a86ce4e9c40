"""What Alembic runs its steps in: the connection, and so the transaction, of whoever called. See run.py."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()

"""How one version of the tables becomes the next: one file in `versions/` per step, run by Alembic.

Must not know: the models, which show only the newest tables. A step must do the same for ever, so it writes names and
types out and imports nothing of this package.

To change tables:
1. Change the models (`cluster/state/tables.py`, `deferred_tables.py`, ...). A new module with tables is listed in
   `cluster/state/schema.py`, else a new store does not get them.
2. Add `versions/NNNN_what.py` with the next number: `revision = "NNNN"`, `down_revision` = the number before it, and
   `upgrade()`. Nothing else names the version. Changes of existing columns go through `op.batch_alter_table`, as SQLite
   has no others. There is no `downgrade`: a store is restored from a copy.
3. Fill new tables from old ones in `upgrade()`, in SQL that both databases know. A new store is made from the models
   and marked as newest: it never runs `upgrade()`.
4. `pytest tests/unit/state/test_migrations.py` compares the migrated tables with the models, on both databases.

All steps that are due run in one transaction, while other processes wait.
"""

"""What requests cost that an upstream served: per request and per hour. Nothing before this was served upstream."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    for table in ("usage", "usage_hours"):
        op.add_column(table, sa.Column("upstream_usd", sa.Float, nullable=False, server_default="0"))

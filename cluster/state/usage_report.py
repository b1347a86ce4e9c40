"""Lines of usage as JSON has them, for `tribes usage --json` and `/v1/usage`. Owns: the names of its fields.

Must not know: queries, HTTP, screens.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from cluster.state.bill import Grouping, UsageLine, total
from cluster.state.usage import COUNTS, Period


def usage_report(lines: Sequence[UsageLine], period: Period, by: Grouping | None) -> dict[str, Any]:
    """Times are Unix seconds; a line names its group under the name of the grouping: `"model": "..."`."""
    return {
        "object": "usage",
        "since": period.since_s,
        "until": period.until_s,
        "group_by": by,
        "data": [
            {"tenant": line.tenant, **({by: group_text(line, by)} if by else {}), **_amounts(line)} for line in lines
        ],
        "total": _amounts(total(lines)),
    }


def group_text(line: UsageLine, by: Grouping | None) -> str | None:
    """A day as its date."""
    if by == "day" and isinstance(line.group, int):
        return datetime.fromtimestamp(line.group, UTC).date().isoformat()
    return None if line.group is None else str(line.group)


def _amounts(line: UsageLine) -> dict[str, Any]:
    names = (*COUNTS, "replica_seconds", "usd", "upstream_usd", "usd_per_mtok")
    return {name: getattr(line, name) for name in names}

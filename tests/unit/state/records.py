"""Usage records for tests."""

from __future__ import annotations

from dataclasses import replace

from cluster.state import UsageRecord

_RECORD = UsageRecord("r", "a", "k", "m", "d", "online", 10, 4, 7, 0.1, 0.2, 1.0, 200, 1000.0)


def record(number: int, **changes: object) -> UsageRecord:
    """6 uncached + 4 cached input and 7 output tokens, finished `number` seconds after 1000."""
    return replace(_RECORD, **{"request_id": f"r{number}", "finished_at_s": 1000.0 + number, **changes})  # type: ignore[arg-type]

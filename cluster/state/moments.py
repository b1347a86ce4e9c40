"""Points in time as people write them. Owns: the accepted forms. Must not know: who asks."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from cluster.state.usage import DAY_S, Period

FORMS = "use 90m, 24h, 7d or 4w (ago), `today`, a date or time such as 2026-07-01 or 2026-07-01T12:00Z, or Unix seconds"
DEFAULT_SINCE = "30d"
_AGO = re.compile(r"(\d{1,6})([mhdw])")
_UNIX = re.compile(r"\d{1,12}(\.\d+)?")
_UNIT_S = {"m": 60, "h": 3600, "d": DAY_S, "w": 7 * DAY_S}


class MomentError(ValueError):
    """No point in time; `name` is the option or parameter it was given to."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def parse_period(since: str | None, until: str | None, now_s: float) -> Period:
    """From `since`, 30 days ago by default, up to `until`, now by default. Raises MomentError."""
    since_s = _parse("since", since or DEFAULT_SINCE, now_s)
    until_s = _parse("until", until, now_s) if until else now_s
    if since_s >= until_s:
        raise MomentError("since", f"since ({since or DEFAULT_SINCE}) is not before until ({until or 'now'})")
    return Period(since_s, until_s)


def _parse(name: str, text: str, now_s: float) -> float:
    if text == "today":
        return float(int(now_s) // DAY_S * DAY_S)
    if ago := _AGO.fullmatch(text):
        return max(0.0, now_s - int(ago[1]) * _UNIT_S[ago[2]])
    if _UNIX.fullmatch(text):
        return float(text)
    try:
        moment = datetime.fromisoformat(text)
        at_s = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        at_s = -1.0
    if at_s < 0:
        raise MomentError(name, f"{name}: {text!r} is no point in time: {FORMS}")
    return at_s

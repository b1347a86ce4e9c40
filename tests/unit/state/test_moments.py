"""Points in time as people write them."""

from __future__ import annotations

import pytest

from cluster.state import Period
from cluster.state.moments import MomentError, parse_period

NOW_S = 1_782_907_200.0 + 3600  # 2026-07-01T13:00Z


@pytest.mark.parametrize(
    ("text", "at_s"),
    [
        ("90m", NOW_S - 5400),
        ("24h", NOW_S - 86400),
        ("7d", NOW_S - 7 * 86400),
        ("2w", NOW_S - 14 * 86400),
        ("today", NOW_S - 13 * 3600),
        ("2026-07-01", NOW_S - 13 * 3600),
        ("2026-07-01T12:00Z", NOW_S - 3600),
        ("2026-07-01T12:00", NOW_S - 3600),
        ("2026-07-01T12:00+02:00", NOW_S - 3 * 3600),
        ("1782907200", NOW_S - 3600),
        ("1782907200.5", NOW_S - 3599.5),
        ("999999w", 0.0),
        (None, NOW_S - 30 * 86400),
    ],
)
def test_forms(text: str | None, at_s: float) -> None:
    assert parse_period(text, None, NOW_S) == Period(at_s, NOW_S)


@pytest.mark.parametrize("text", ["yesterday", "1e9999", "nan", "-5", "7 d", "9" * 30, "0001-01-01", "2026-13-01"])
def test_what_is_no_point_in_time_is_said_with_the_forms(text: str) -> None:
    with pytest.raises(MomentError, match="7d") as raised:
        parse_period("today", text, NOW_S)
    assert raised.value.name == "until"


def test_a_period_runs_forward() -> None:
    with pytest.raises(MomentError, match="not before"):
        parse_period("2026-07-01", "2026-06-01", NOW_S)

"""How numbers are written for people.

Role: the same words for a count, a time and a price in the terminal and on the page.
"""

from __future__ import annotations


def count(value: float) -> str:
    """`950`, `12.3k`, `4.57M`, `1.20G`: three digits are enough to read."""
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            scaled = value / (1e3 if unit == "k" else limit)
            return f"{scaled:.{2 if abs(scaled) < 10 else 1 if abs(scaled) < 100 else 0}f}{unit}"
    return f"{value:.0f}"


def rate(value: float) -> str:
    return f"{value:.1f}" if 0 < value < 10 else count(value)


def tick(value: float) -> str:
    """A number on an axis: `0.5`, `1500`, `20k`, `1.5M`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):g}{unit}"
    return f"{value:g}"


def clock(seconds: float | None) -> str:
    """`00:03:10`, `2d 04:00:00`, `-` when unknown."""
    if seconds is None:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days}d " if days else "") + f"{hour:02}:{minute:02}:{second:02}"


def duration(seconds: float | None) -> str:
    """`85 ms`, `2.5 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds else "0 s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, second = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {second:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def usd(amount: float | None) -> str:
    """`$0.0012`, `$0.178`, `$3.45`, `$1,234`: never a price that rounds to nothing."""
    if amount is None:
        return "-"
    if amount >= 1000:
        return f"${amount:,.0f}"
    if amount >= 1 or amount == 0:
        return f"${amount:.2f}"
    if amount >= 0.1:
        return f"${amount:.3f}"
    return f"${amount:.4f}" if amount >= 0.001 else f"${amount:.2g}"


def percent(share: float | None) -> str:
    if share is None:
        return "-"
    return f"{share * 100:.1f} %" if share < 0.995 or share == 1 else f"{share * 100:.2f} %"

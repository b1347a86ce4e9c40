"""Usage with its price, as `tribes usage` and `/v1/usage` show it, and what tenants spent today.

Owns: joining sums of usage with the costs of replicas; requests served upstream have their price with them.
Must not know: the rule of the split (costs.py), HTTP, screens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import Connection

from cluster.scheduling.service import ServiceWeights
from cluster.state.costs import NOBODY, Split, usd_per_mtok
from cluster.state.spans import replica_seconds
from cluster.state.usage import DAY_S, SUMMED, Period, sums

Grouping = Literal["key", "model", "class", "day"]
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)
_COLUMNS = {"key": "key_id", "model": "model", "class": "request_class", "day": "day_s"}


@dataclass(slots=True)
class UsageLine:
    """What a tenant, or one of its keys, models, classes or days, used and cost. `group` is None where not grouped; of
    a day it is when it began."""

    tenant: str
    group: str | int | None = None
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    replica_seconds: float = 0.0
    usd: float = 0.0
    """The share of what replicas cost, and what was paid to upstreams."""
    upstream_usd: float = 0.0
    """The part of `usd` that was paid to upstreams."""

    @property
    def usd_per_mtok(self) -> float | None:
        return usd_per_mtok(self.usd, self.prompt_tokens + self.output_tokens)


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens (input, cached or not, and output) and dollars: the share of what replicas cost, and paid to upstreams."""

    tokens: int
    usd: float


def usage_lines(
    connection: Connection,
    period: Period,
    weights: ServiceWeights,
    tenant: str | None = None,
    by: Grouping | None = None,
) -> list[UsageLine]:
    """One line per tenant and group, in their order; at the end, unless one tenant is asked about, what was idle."""
    column = _COLUMNS[by] if by else None
    shared = ("deployment", "day_s") if by == "day" else ("deployment",)
    mine = sums(connection, period, tuple(dict.fromkeys(("tenant", *([column] if column else []), *shared))), tenant)
    # What a deployment cost is split among all its tenants, whoever is asked about.
    everybody = mine if tenant is None else sums(connection, period, shared)
    split = Split(everybody, replica_seconds(connection, period, by_day=by == "day"), weights)
    lines: dict[tuple[str, Any], UsageLine] = {}
    for row in mine:
        line = _line(lines, row["tenant"], row[column] if column else None)
        cost = split.of(row)
        line.usd += cost.usd + row["upstream_usd"]
        line.replica_seconds += cost.replica_seconds
        for name in SUMMED:
            setattr(line, name, getattr(line, name) + row[name])
    if tenant is None:
        _add_idle(lines, split, column)
    return list(lines.values())


def _add_idle(lines: dict[tuple[str, Any], UsageLine], split: Split, column: str | None) -> None:
    """Of idle replicas the model and the day are known, never a key or a class."""
    for life in split.idle():
        line = _line(lines, NOBODY, life.get(column) if column else None)
        line.usd += life["usd"]
        line.replica_seconds += life["seconds"]


def _line(lines: dict[tuple[str, Any], UsageLine], tenant: str, group: Any) -> UsageLine:
    return lines.setdefault((tenant, group), UsageLine(tenant, group))


def total(lines: Iterable[UsageLine]) -> UsageLine:
    """All lines in one."""
    result = UsageLine("")
    for line in lines:
        for name in (*SUMMED, "replica_seconds", "usd"):
            setattr(result, name, getattr(result, name) + getattr(line, name))
    return result


def spent_today(connection: Connection, now_s: float, weights: ServiceWeights) -> dict[str, Spent]:
    """Since midnight UTC, of every tenant that used anything. Midnight begins an hour, so only sums are read."""
    lines = usage_lines(connection, Period(int(now_s) // DAY_S * DAY_S), weights)
    return {
        line.tenant: Spent(line.prompt_tokens + line.output_tokens, line.usd) for line in lines if line.tenant != NOBODY
    }

"""`tribes usage`. Owns: options, columns and wording. Must not know: queries, how costs are split."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cluster.cli.errors import UsageError
from cluster.cli.options import DEFAULT_CONFIG, ConfigOption, load
from cluster.cli.screen import console, titled_table

if TYPE_CHECKING:
    from rich.table import Table

    from cluster.state import Period, UsageLine

Grouping = Literal["key", "model", "class", "day"]


def usage(
    config: ConfigOption = DEFAULT_CONFIG,
    tenant: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    since: Annotated[str, typer.Option(help="90m, 24h, 7d, 4w (ago), today, 2026-07-01, or Unix seconds.")] = "30d",
    until: Annotated[str | None, typer.Option(help="In the same forms; now if not given.")] = None,
    by: Annotated[Grouping | None, typer.Option(help="A line for each, instead of one per tenant.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what tenants used and what it cost: their share, by service, of what the replicas cost in that time."""
    loaded = load(config)
    from cluster.cli.tenants import open_store
    from cluster.scheduling.service import ServiceWeights
    from cluster.state.moments import MomentError, parse_period
    from cluster.state.usage_report import usage_report

    try:
        period = parse_period(since, until, time.time())
    except MomentError as error:
        raise UsageError(f"--{error}") from None
    store = open_store(loaded)
    try:
        known = store.tenants()
        if tenant is not None and tenant not in known:
            raise UsageError(f"there is no tenant {tenant!r}; the tenants are {', '.join(sorted(known))}")
        weights = ServiceWeights(loaded.scheduling.input_weight, loaded.scheduling.output_weight)
        lines = store.usage_lines(period, weights, tenant, by)
    finally:
        store.close()
    if as_json:
        console().print_json(data=usage_report(lines, period, by))
    elif not lines:
        console().print(f"nothing was used {_when(period)}", markup=False)
    else:
        console().print(_table(lines, period, by))


def _table(lines: list[UsageLine], period: Period, by: Grouping | None) -> Table:
    from rich.text import Text

    from cluster.state.bill import total
    from cluster.state.usage_report import group_text

    numbers = ("requests", "tokens in", "cached", "out", "replica-s", "USD", "USD per Mtok")
    group = (by,) if by else ()
    table = titled_table(f"Usage {_when(period)}", "tenant", *group, *numbers, right=numbers)
    for line in lines:
        name = (Text(group_text(line, by) or "-"),) if by else ()
        table.add_row(Text(line.tenant), *name, *_cells(line))
    if len(lines) > 1:
        table.add_section()
        table.add_row("total", *([""] if by else []), *_cells(total(lines)))
    return table


def _cells(line: UsageLine) -> list[str]:
    per_mtok = f"{line.usd_per_mtok:.4f}" if line.usd_per_mtok is not None else "-"
    tokens = [str(count) for count in (line.requests, line.prompt_tokens, line.cached_tokens, line.output_tokens)]
    return [*tokens, f"{line.replica_seconds:.1f}", f"{line.usd:.5f}", per_mtok]


def _when(period: Period) -> str:
    return f"from {_clock(period.since_s)} to {_clock(period.until_s or time.time())} UTC"


def _clock(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at_s))

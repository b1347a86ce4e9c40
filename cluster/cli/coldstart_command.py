"""`tribes coldstart`: how long each way up takes here. Owns: options, the table. Must not know: how it is measured."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.errors import UsageError
from cluster.cli.options import DEFAULT_CONFIG, ConfigOption, load
from cluster.cli.screen import Progress, console, error_console, titled_table

if TYPE_CHECKING:
    from rich.console import Console


def coldstart(
    config: ConfigOption = DEFAULT_CONFIG,
    deployment: Annotated[list[str] | None, typer.Option("--deployment", "-d", help="Only this one; repeat.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Start each served engine in every way that this machine has, and time the stages. Takes minutes."""
    from cluster.coldstart.fork_server import ForkServerError
    from cluster.coldstart.measure import StartError
    from cluster.coldstart.report import measure_ladder
    from cluster.config import unknown_reference
    from cluster.engines import EngineStartError

    loaded = load(config)
    served = loaded.serving()
    for name in deployment or ():
        if name not in served:
            raise UsageError(unknown_reference("deployment", name, served))
    try:
        with Progress(error_console()) as progress:
            found = [asyncio.run(measure_ladder(loaded, name, progress)) for name in deployment or served]
    except (EngineStartError, ForkServerError, StartError) as error:
        raise UsageError(str(error)) from error
    if json_path is not None:
        import json

        json_path.write_text(json.dumps({"deployments": found}, indent=1) + "\n")
    screen = console()
    for item in found:
        _show(screen, item)


def _show(screen: Console, found: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.text import Text

    title = f"{found['deployment']}: {found['model']} on {found['engine']}"
    right = ("first token", "routable", "holds", "replica", "of it shared")
    table = titled_table(escape(title), "rung", *right, "stages", right=right)
    for rung in found["rungs"]:
        if rung["why_not"] is not None:
            table.add_row(rung["rung"], "-", "-", "-", "-", "-", Text(rung["why_not"], style="dim"))
            continue
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in rung["stages"].items())
        cells = (_seconds(rung["first_token_s"]), _seconds(rung["routable_s"]), _gib(rung["held_gib"]))
        memory = (_gib(rung.get("replica_gib")), _gib(rung.get("shared_gib")))
        table.add_row(rung["rung"], *cells, *memory, stages)
    screen.print(table)
    with_memory = f"best in the {found['free_gib']:.1f} GiB that are free: {found['best']}"
    screen.print(Text(f"{with_memory}; holding nothing: {found['best_holding_nothing']}\n"))


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _gib(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} GiB"

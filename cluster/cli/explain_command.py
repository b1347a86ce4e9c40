"""`tribes explain`: the engines' command lines, and why they are so. Owns: the table. Must not know: where from."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.errors import UsageError
from cluster.cli.screen import console, titled_table

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.cli.explain_data import Explanation


def explain(
    config: Annotated[Path, typer.Argument(help="Configuration file.")],
    deployment: Annotated[str | None, typer.Option("--deployment", "-d", help="Only this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show each engine's command line, where every argument comes from, and why. Starts nothing."""
    from cluster.cli import explain_data
    from cluster.config import load_config, unknown_reference

    loaded = load_config(config)
    if deployment is not None and deployment not in loaded.deployments:
        raise UsageError(unknown_reference("deployment", deployment, loaded.deployments))
    names = [deployment] if deployment else list(loaded.deployments)
    found = [explain_data.explain(loaded, name) for name in names]
    if as_json:
        import json

        typer.echo(json.dumps([asdict(item) for item in found], indent=2))
        return
    screen = console()
    for item in found:
        _show(screen, item)


def _show(screen: Console, item: Explanation) -> None:
    from rich.markup import escape
    from rich.text import Text

    title = f"{item.deployment}: {item.model} on {item.engine}, {item.place}"
    table = titled_table(escape(title), "argument", "value", "from", "why")
    for row in item.arguments:
        table.add_row(*(Text(cell, overflow="fold") for cell in (row.argument, row.value, row.source, row.why)))
    screen.print(table)
    if item.goal:
        screen.print(Text(f"preset: {item.goal}"), soft_wrap=True)
    for warning in item.warnings:
        screen.print(Text(f"note: {warning}", style="yellow"), soft_wrap=True)
    if item.environment:
        screen.print(Text(f"environment: {' '.join(item.environment)}"), soft_wrap=True)
    command = shlex.join(item.command) if item.command else "(no command: the engine runs inside the batch job)"
    screen.print(Text(f"{command}\n"), soft_wrap=True)

"""`tribes demo`. Owns: its options. Must not know: the steps of the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.options import DEFAULT_CONFIG, ConfigOption, load
from cluster.cli.screen import console


def demo(
    config: ConfigOption = DEFAULT_CONFIG,
    output: Annotated[Path, typer.Option(help="Machine-readable copy of the results.")] = Path("artifacts/demo.json"),
    down: Annotated[bool, typer.Option("--down", help="Stop the cluster at the end.")] = False,
) -> None:
    """Start the cluster and send it an offline job, a conversation and a burst of three tenants; show what happened."""
    loaded = load(config)
    from cluster.demo import run_demo

    results = run_demo(loaded, output, console(), stop_after=down)
    if any(summary.errors for summary in results.classes):
        raise typer.Exit(1)

"""The commands of `tribes`. Owns: names, grouping and the one place where expected errors become one line.

Must not know: what a command does.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from cluster.cli import (
    batch_commands,
    calibrate_command,
    chat_command,
    cluster_commands,
    coldstart_command,
    config_commands,
    demo_command,
    explain_command,
    keys_commands,
    plan_command,
    quality_command,
    simulate_command,
    usage_command,
)
from cluster.cli.errors import INTERRUPTED, explained
from cluster.cli.screen import error_console


class Commands(TyperGroup):
    """Runs a command; an error that the user can cure ends it with one red message and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            error_console().print("stopped")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            # An exit code of its own: the ends and usage errors of Typer itself.
            message = None if hasattr(error, "exit_code") else explained(error)
            if message is None:
                raise
            error_console().print(message, style="red", highlight=False, markup=False, soft_wrap=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="One Ray cluster for online, semi-online and offline LLM inference.",
)
app.command("up")(cluster_commands.up)
app.command("down")(cluster_commands.down)
app.command("status")(cluster_commands.status)
app.add_typer(keys_commands.app, name="keys")
app.command("chat")(chat_command.chat)
app.add_typer(batch_commands.app, name="batch")
app.command("usage")(usage_command.usage)
app.command("validate")(config_commands.validate)
app.command("schema")(config_commands.schema)
app.command("explain")(explain_command.explain)
app.command("quality")(quality_command.quality)
app.command("plan")(plan_command.plan)
app.command("calibrate")(calibrate_command.calibrate)
app.command("simulate")(simulate_command.simulate)
app.command("coldstart")(coldstart_command.coldstart)
app.command("demo")(demo_command.demo)

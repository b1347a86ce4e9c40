"""The command line `tribes`: a convenience over Ray, Serve, the Jobs API and HTTP, all of which work without it.

Role: options in, text out. Owns: the words on the screen. Must not know: how anything is done.
Importing this package and `tribes --help` stay fast: what is heavy is imported inside the commands that need it.
"""

from __future__ import annotations


def main() -> None:
    """The console script."""
    from cluster.cli.app import app

    app(prog_name="tribes")

"""Options that several commands share. Owns: their names and defaults, and loading what they name.

Must not know: the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.errors import UsageError

if TYPE_CHECKING:
    from cluster.config import TribesConfig

DEFAULT_CONFIG = Path("configs/local.yaml")
ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="Configuration file of the cluster.", show_default=True)
]


def load(path: Path) -> TribesConfig:
    """The configuration; says how to name one when the default is not here."""
    from cluster.config import load_config

    if path == DEFAULT_CONFIG and not path.exists():
        raise UsageError(
            f"there is no {DEFAULT_CONFIG} in this folder: go to the checkout, or name a file with -c FILE"
        )
    return load_config(path)

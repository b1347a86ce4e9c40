"""This project's cluster for one case. Owns: its start and its end. Must not know: what is measured."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.config import TribesConfig
from cluster.local.isolate import isolated
from cluster.local.up import Started, down, up

STOP_GRACE_S = 10.0


@contextmanager
def tribes(config: TribesConfig, folder: Path, say: Callable[[str], None]) -> Iterator[tuple[TribesConfig, Started]]:
    """The configuration as it runs, on free ports and in `folder`, and where it answers."""
    heed_sigterm()
    folder.mkdir(parents=True, exist_ok=True)
    config = isolated(config, folder)
    try:
        yield config, up(config, say)
    finally:
        down(config, STOP_GRACE_S, say)


def heed_sigterm() -> None:
    """A run that is stopped stops its clusters: by default Python would end there and then.

    To be said again after `ray.shutdown()`, which puts the default back.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))

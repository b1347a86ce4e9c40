"""Role: what a fork host imports for the scripted engine. `FORK_TEST` in its environment makes it misbehave."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence


def preload(hints: Sequence[str]) -> None:
    import uvicorn

    import tests.support.scripted_engine  # noqa: F401

    how = os.environ.get("FORK_TEST")
    if how == "fail":
        sys.exit("nothing to import")
    if how == "stuck":  # engines that come from here never serve
        uvicorn.run = lambda *_, **__: time.sleep(60)


def probe() -> None:
    assert "tests.support.scripted_engine" in sys.modules

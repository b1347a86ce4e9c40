"""Finding and ending the processes of one run. Owns: the sweep by marker. Must not know: Ray.

Every process that the head started, however deep, carries `TRIBES_RUN=<marker>` in its environment: exactly those are
stopped, by pid, and no process of anybody else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

POLL_S = 0.1


def marked_pids(marker: str) -> list[int]:
    """Live processes of the run, this one excepted."""
    needle = f"TRIBES_RUN={marker}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if needle in (entry / "environ").read_bytes().split(b"\0") and not _is_zombie(entry):
                found.append(int(entry.name))
    return found


def end(pids: list[int], grace_s: float) -> None:
    """SIGTERM, up to `grace_s` to go, SIGKILL."""
    _signal(pids, signal.SIGTERM)
    if not wait_gone(pids, grace_s):
        _signal(pids, signal.SIGKILL)
        wait_gone(pids, 5.0)


def wait_gone(pids: list[int], timeout_s: float) -> bool:
    """Whether all are gone within the time."""
    deadline = time.monotonic() + timeout_s
    while any(_alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _alive(pid: int) -> bool:
    # A child of this very process stays a zombie until it is reaped.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    entry = Path(f"/proc/{pid}")
    return entry.exists() and not _is_zombie(entry)


def _is_zombie(entry: Path) -> bool:
    try:
        return (entry / "stat").read_text().rsplit(") ", 1)[-1].startswith("Z")
    except OSError:
        return True

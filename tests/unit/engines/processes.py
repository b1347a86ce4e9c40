"""Helpers of the guard's and the supervisor's tests: look at processes by pid."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

PATIENCE_S = 15.0


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that its parent has yet to reap does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> bool:
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def all_gone(pids: Iterable[int], patience_s: float = PATIENCE_S) -> bool:
    pids = list(pids)
    return eventually(lambda: not any(alive(pid) for pid in pids), patience_s)

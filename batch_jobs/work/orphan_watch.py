"""Waits for a process to end, then ends its process group and removes the shared memory the group leaves.

Run as a file: `python -I -S orphan_watch.py PID FOLDER_OF_GUARD`. Detached by a double fork and in a session of its
own, because Ray kills the direct children of a worker that exits, Python's resource trackers (which would unlink the
memory) among them.
Standard library only, and the part of `cluster/engines/guard.py` that keeps account of shared memory.
Owns: the end of one process group. Must not know: Ray, engines.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

LOOK_S = 0.5
NOTE_EVERY_S = 2
END_BOUND_S = 10.0


def birth(pid: int) -> str | None:
    """When the process started, in ticks; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def members(group: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == group and birth(int(entry.name)):
                yield int(entry.name)


def looks(pid: int, born: str) -> Iterator[None]:
    """Yields from time to time until the process has ended, and notices that at once: looking often costs a core what
    the engine needs."""
    try:
        end = os.pidfd_open(pid)
    except (AttributeError, OSError):  # an old kernel, or gone already
        while birth(pid) == born:
            yield
            time.sleep(LOOK_S)
        return
    with os.fdopen(end, closefd=True):
        waiting = select.poll()
        waiting.register(end, select.POLLIN)
        while birth(pid) == born:
            yield
            waiting.poll(NOTE_EVERY_S * 1000)


def main(pid: int, guard_folder: str) -> None:
    sys.path.insert(0, guard_folder)
    from guard import SharedMemoryLedger

    ledger = SharedMemoryLedger()
    born = birth(pid)
    if os.fork():
        os._exit(0)
    if born is not None:
        for _ in looks(pid, born):
            ledger.note(members(pid))
    deadline_s = time.monotonic() + END_BOUND_S
    while (left := list(members(pid))) and time.monotonic() < deadline_s:
        ledger.note(left)
        for member in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        time.sleep(0.1)
    ledger.release()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

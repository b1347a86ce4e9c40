"""No engine process outlives the actor that started it, however the actor ends, and no shared memory stays behind.

Role: guard against orphans that hold an accelerator's memory. Owns: the process group and its watcher.
Must not know: which engine.

The process becomes the leader of its own group, which its children belong to, and starts a small watcher outside the
group, detached by a double fork: Ray kills the direct children of a worker that exits. When the actor is gone the
watcher kills the group, Python's resource trackers last: each unlinks the shared memory and semaphores that the killed
processes have left, as soon as nobody of its tree lives.
"""

from __future__ import annotations

import os
import subprocess
import sys

_WATCH = """
import os, signal, sys, time
parent = int(sys.argv[1])
TRACKER = b"multiprocessing.resource_tracker"

def started(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rsplit(") ", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]

def members():
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.getpgid(int(name)) == parent and started(int(name)):
                with open(f"/proc/{name}/cmdline", "rb") as line:
                    yield int(name), TRACKER in line.read()
        except OSError:
            continue

def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass

birth = started(parent)
if os.fork():
    os._exit(0)
while birth is not None and started(parent) == birth:
    time.sleep(0.5)
deadline = time.monotonic() + 5
while time.monotonic() < deadline:
    left = list(members())
    if not left:
        break
    for pid, tracker in left:
        if not tracker:
            kill(pid)
    time.sleep(0.1)
for pid, _ in list(members()):
    kill(pid)
"""


def die_with_children() -> None:
    """From now on, the children of this process end within about half a second of it."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    subprocess.run(
        [sys.executable, "-S", "-E", "-c", _WATCH, str(os.getpid())],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=30,
        check=True,
    )

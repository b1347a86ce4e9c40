"""No engine process outlives the actor that started it, however the actor ends.

Role: guard against orphans that hold an accelerator's memory. Owns: the process group and its watcher.
Must not know: which engine.

The process becomes the leader of its own group, which its children belong to, and starts a small watcher outside the
group. When the watcher's parent is gone, it kills the group. A watcher, because nothing in a process runs after
SIGKILL; it asks for its parent's pid rather than waiting on a pipe, because forked children would hold the pipe open.
"""

from __future__ import annotations

import os
import subprocess
import sys

_WATCH = """
import os, signal, sys, time
parent = int(sys.argv[1])
while os.getppid() == parent:
    time.sleep(0.5)
try:
    os.killpg(parent, signal.SIGKILL)
except ProcessLookupError:
    pass
"""


def die_with_children() -> None:
    """From now on, the children of this process end within about half a second of it."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", _WATCH, str(os.getpid())],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

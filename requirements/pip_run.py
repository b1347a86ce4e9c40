"""Run pip: with its own progress on a terminal, and otherwise one line now and then, and its words only if it fails.

Owns: what is shown of pip. Must not know: what is installed. Standard library only.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque

EVERY_S = 10.0
LINES_OF_A_FAILURE = 25


def run(command: list[str], lock_fd: int) -> bool:
    """Whether `command` succeeded. The child inherits `lock_fd`, so the lock lasts as long as it writes."""
    if sys.stdout.isatty():
        done = subprocess.run(command, stdin=subprocess.DEVNULL, pass_fds=(lock_fd,), check=False)
        return done.returncode == 0
    with subprocess.Popen(
        [*command, "--progress-bar", "off"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(lock_fd,),
        text=True,
        errors="replace",
    ) as pip:
        last = follow(pip)
    if pip.returncode != 0:
        print("".join(last), end="", flush=True)
    return pip.returncode == 0


def follow(pip: subprocess.Popen[str]) -> deque[str]:
    """Tell how far it is while it runs; its last lines, for a failure."""
    last: deque[str] = deque(maxlen=LINES_OF_A_FAILURE)
    started_s = told_s = time.monotonic()
    packages = 0
    doing = "fetching"
    for line in pip.stdout or ():
        last.append(line)
        packages += line.startswith(("Collecting ", "Processing "))
        now_s = time.monotonic()
        begins_unpacking = line.startswith("Installing collected")
        if begins_unpacking:
            doing = "all fetched, unpacking"
        if begins_unpacking or now_s - told_s >= EVERY_S:
            print(f"env:   {doing}, {packages} packages, {now_s - started_s:.0f} s", flush=True)
            told_s = now_s
    return last

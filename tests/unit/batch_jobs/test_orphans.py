"""Nothing of a killed process stays: neither its children nor its shared memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from batch_jobs.output.lock import process_start


def test_children_die_with_a_killed_process(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time\n"
        "from batch_jobs.work.orphans import die_with_children\n"
        "die_with_children()\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(100)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert process_start(child) is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline_s = time.monotonic() + 10
    while process_start(child) is not None and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert process_start(child) is None
    parent.stdout.close()


def test_shared_memory_of_a_killed_group_is_removed(tmp_path: Path) -> None:
    """Ray may kill the resource tracker too, which would have tidied up; a semaphore has no name in its owner's map."""
    script = tmp_path / "group.py"
    script.write_text(
        "import multiprocessing, os, time\n"
        "from multiprocessing import shared_memory\n"
        "from batch_jobs.work.orphans import die_with_children\n"
        "die_with_children()\n"
        "before = set(os.listdir('/dev/shm'))\n"
        "lock = multiprocessing.get_context('spawn').Lock()\n"
        "memory = shared_memory.SharedMemory(create=True, size=1000)\n"
        "print(*(set(os.listdir('/dev/shm')) - before), flush=True)\n"
        "time.sleep(100)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert parent.stdout is not None
    left = [Path("/dev/shm", name) for name in parent.stdout.readline().split()]
    assert len(left) >= 2 and all(path.exists() for path in left)
    time.sleep(3)  # the watcher looks every two seconds
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline_s = time.monotonic() + 10
    while any(path.exists() for path in left) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    parent.stdout.close()
    assert not [path for path in left if path.exists()]

"""No engine process outlives the actor that started it, however the actor ends, and no shared memory stays behind.

Role: guard against orphans that hold an accelerator's memory. Owns: the process group; `orphan_watch.py` does the rest.
Must not know: which engine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cluster.engines import guard


def die_with_children() -> None:
    """From now on, the children of this process (its group) end within about half a second of it."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    watch = Path(__file__).with_name("orphan_watch.py")
    subprocess.run(
        [sys.executable, "-I", "-S", str(watch), str(os.getpid()), str(Path(guard.__file__).parent)],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=30,
        check=True,
    )

"""Role: one guarded child process as asyncio sees it. Owns: the guard's process, the child's output, its folder.

Output is read by a thread of its own: an engine that writes a lot never waits for the event loop, and the loop never
waits for it. Must not know: HTTP, engines, health.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final, cast

from cluster.engines.launch import RUN_DIR, LaunchSpec

GUARD: Final = Path(__file__).with_name("guard.py")
KEPT_LINES: Final = 400  # enough for the cause of a failure to stand above the tracebacks that it leads to
MAX_LINE_CHARS: Final = 8192
GUARD_MARGIN_S: Final = 15.0  # what a guard may take after its grace: see KILL_BOUND_S there
# The folder would mix the metrics of this process and of every engine that it starts. The thread count is what Ray
# sets for its own workers (the CPUs they reserve): engines choose theirs, or the deployment's env does.
NOT_INHERITED: Final = ("PROMETHEUS_MULTIPROC_DIR", "OMP_NUM_THREADS")


class GuardedChild:
    """Started by its constructor, in a running event loop. Ends with its owner, whatever ends that."""

    def __init__(self, spec: LaunchSpec, log: logging.Logger, grace_s: float) -> None:
        self.spec = spec
        self._log = log
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._run_dir = Path(tempfile.mkdtemp(prefix="tribes-engine-"))
        try:
            self._process = self._spawn(grace_s)
        except BaseException:
            shutil.rmtree(self._run_dir, ignore_errors=True)
            raise
        self._reader = threading.Thread(target=self._read_output, name=f"engine-output-{self.pid}", daemon=True)
        self._reader.start()
        threading.Thread(target=self._await_exit, name=f"engine-exit-{self.pid}", daemon=True).start()

    @property
    def pid(self) -> int:
        """The root of the process tree: the outer guard."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._exited.result() if self._exited.done() else None

    @property
    def last_lines(self) -> list[str]:
        return list(self._lines)

    async def wait(self) -> int:
        """The engine's exit code, once its whole tree is gone and its last lines are read."""
        code = await asyncio.shield(self._exited)
        await asyncio.to_thread(self._reader.join, 1.0)
        return code

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, `grace_s` to obey, then SIGKILL for the whole tree. Returns when it is gone."""
        for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGUSR1, GUARD_MARGIN_S), (signal.SIGKILL, 1.0)):
            if self._exited.done():
                break
            self._process.send_signal(number)
            await asyncio.wait([self._exited], timeout=patience_s)
        if not self._exited.done() or self._process.returncode == -signal.SIGKILL:
            self._log.error("the guard %d of the engine had to be killed; its inner guard ends the rest", self.pid)
        cast(IO[str], self._process.stdin).close()
        await asyncio.to_thread(shutil.rmtree, self._run_dir, ignore_errors=True)

    def _spawn(self, grace_s: float) -> subprocess.Popen[str]:
        for name, text in self.spec.files.items():
            (self._run_dir / name).touch(mode=0o600)
            (self._run_dir / name).write_text(text)
        argv = [part.replace(RUN_DIR, str(self._run_dir)) for part in self.spec.argv]
        guard = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), str(grace_s), str(self._run_dir), "--"]
        return subprocess.Popen(
            [*guard, *argv],
            stdin=subprocess.PIPE,  # never written to: its end tells the guard that we are gone
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment(argv[0]),
            start_new_session=True,
            text=True,
            encoding="utf-8",
            errors="replace",  # newline=None in text mode: a progress bar's carriage returns end lines too
        )

    def _environment(self, program: str) -> Mapping[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        if "/" in program:
            # Engines call tools of their environment (ninja, nvcc wrappers) by name, as if it were activated.
            inherited["PATH"] = f"{Path(program).parent}{os.pathsep}{inherited.get('PATH', os.defpath)}"
        own = {name: value.replace(RUN_DIR, str(self._run_dir)) for name, value in self.spec.env.items()}
        return {**inherited, **own}

    def _read_output(self) -> None:
        output = cast(IO[str], self._process.stdout)
        while line := output.readline(MAX_LINE_CHARS):
            # Engines print their settings, and the key is one of them.
            text = line.rstrip().replace(self.spec.api_key, "***") if self.spec.api_key else line.rstrip()
            if text:
                self._lines.append(text)
                self._log.info("%s", text)
        output.close()

    def _await_exit(self) -> None:
        code = self._process.wait()
        try:
            self._loop.call_soon_threadsafe(self._exited.set_result, code)
        except RuntimeError:
            self._log.debug("engine %d ended with %d after its event loop", self.pid, code)

"""Role: a child process as asyncio sees it. Owns: its output, its end, the folder of an engine, and the guarded child.

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
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
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


class FollowedProcess:
    """A process whose lines a thread reads and whose end is a future of the event loop it was made in."""

    def __init__(self, log: logging.Logger, secret: str = "") -> None:
        self._log = log
        self._secret = secret
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = self._loop.create_future()

    @property
    def exit_code(self) -> int | None:
        return self._exited.result() if self._exited.done() else None

    @property
    def last_lines(self) -> list[str]:
        return list(self._lines)

    async def wait(self) -> int:
        """The exit code, once the process (of an engine: its whole tree) is gone and its last lines are read."""
        code = await asyncio.shield(self._exited)
        await asyncio.to_thread(self._reader.join, 1.0)
        return code

    def _follow(self, name: str, output: IO[str], await_exit: Callable[[], int]) -> None:
        """Start the two threads. `await_exit` blocks until the process has ended."""
        self._reader = threading.Thread(target=self._read, args=(output,), name=f"{name}-output", daemon=True)
        self._reader.start()
        threading.Thread(target=self._tell_exit, args=(await_exit,), name=f"{name}-exit", daemon=True).start()

    def _read(self, output: IO[str]) -> None:
        while line := output.readline(MAX_LINE_CHARS):
            # Engines print their settings, and the key is one of them.
            text = line.rstrip().replace(self._secret, "***") if self._secret else line.rstrip()
            if text:
                self._lines.append(text)
                self._log.info("%s", text)
        output.close()

    def _tell_exit(self, await_exit: Callable[[], int]) -> None:
        code = await_exit()
        try:
            self._loop.call_soon_threadsafe(self._exited.set_result, code)
        except RuntimeError:
            self._log.debug("a process ended with %d after its event loop", code)


class EngineChild(FollowedProcess, ABC):
    """An engine under its guard: one folder, one tree, an orderly end. Subclasses say how it is started and reached."""

    def __init__(self, spec: LaunchSpec, log: logging.Logger) -> None:
        super().__init__(log, spec.api_key)
        self.spec = spec
        self._run_dir = Path(tempfile.mkdtemp(prefix="tribes-engine-"))

    @property
    @abstractmethod
    def pid(self) -> int:
        """The root of the process tree: the guard."""

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, `grace_s` to obey, then SIGKILL for the whole tree. Returns when it is gone."""
        for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGUSR1, GUARD_MARGIN_S), (signal.SIGKILL, 1.0)):
            if self._exited.done():
                break
            self._send(number)
            await asyncio.wait([self._exited], timeout=patience_s)
        if not self._exited.done() or self.exit_code == -signal.SIGKILL:
            self._log.error("the guard %d of the engine had to be killed; what is behind it ends the rest", self.pid)
        self._let_go()
        await asyncio.to_thread(shutil.rmtree, self._run_dir, ignore_errors=True)

    @abstractmethod
    def _send(self, number: signal.Signals) -> None:
        """A signal to the guard."""

    @abstractmethod
    def _let_go(self) -> None:
        """Close the owner's end, at whose end the guard ends the tree."""

    def _write_files(self) -> None:
        for name, text in self.spec.files.items():
            (self._run_dir / name).touch(mode=0o600)
            (self._run_dir / name).write_text(text)

    def _argv(self) -> list[str]:
        return [part.replace(RUN_DIR, str(self._run_dir)) for part in self.spec.argv]

    def _own_environment(self) -> dict[str, str]:
        return {name: value.replace(RUN_DIR, str(self._run_dir)) for name, value in self.spec.env.items()}


class GuardedChild(EngineChild):
    """Started by its constructor, in a running event loop. Ends with its owner, whatever ends that."""

    def __init__(self, spec: LaunchSpec, log: logging.Logger, grace_s: float) -> None:
        super().__init__(spec, log)
        try:
            self._process = self._spawn(grace_s)
        except BaseException:
            shutil.rmtree(self._run_dir, ignore_errors=True)
            raise
        self._follow(f"engine-{self.pid}", cast(IO[str], self._process.stdout), self._process.wait)

    @property
    def pid(self) -> int:
        return self._process.pid

    def _send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def _let_go(self) -> None:
        cast(IO[str], self._process.stdin).close()

    def _spawn(self, grace_s: float) -> subprocess.Popen[str]:
        self._write_files()
        argv = self._argv()
        guard = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), str(grace_s), str(self._run_dir), "--"]
        return spawn([*guard, *argv], environment(argv[0], self._own_environment()))


def spawn(argv: list[str], env: Mapping[str, str]) -> subprocess.Popen[str]:
    """A process in a session of its own, whose output and stdin are pipes to us."""
    return subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,  # never written to: its end tells the process that we are gone
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        start_new_session=True,
        text=True,
        encoding="utf-8",
        errors="replace",  # newline=None in text mode: a progress bar's carriage returns end lines too
    )


def environment(program: str, own: Mapping[str, str]) -> dict[str, str]:
    """What an engine's process gets: ours, but for what is only ours, and its own above it."""
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    if "/" in program:
        # Engines call tools of their environment (ninja, nvcc wrappers) by name, as if it were activated.
        inherited["PATH"] = f"{Path(program).parent}{os.pathsep}{inherited.get('PATH', os.defpath)}"
    return {**inherited, **own}

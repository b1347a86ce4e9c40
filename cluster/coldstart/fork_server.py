"""Role: own a fork host: start it, know when it takes requests, end it. Owns: its process and its socket's folder.

Which engines it can fork is a matter of their environment: interpreter, module and every variable that is the same for
each start (`ForkPlan`). Two deployments that agree in these share a host. Must not know: Ray, replicas, requests.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, cast

from cluster.coldstart.memory import Memory, memory_of
from cluster.engines import sglang, vllm
from cluster.engines.child import FollowedProcess, environment, spawn
from cluster.engines.launch import RUN_DIR, LaunchSpec

HOST: Final = Path(__file__).with_name("fork_host.py")
PRELOADS: Final = {
    vllm.MODULE: Path(__file__).with_name("preload_vllm.py"),
    sglang.MODULE: Path(__file__).with_name("preload_sglang.py"),
}
"""Engines that can be forked, by the module they are started as."""
READY_TIMEOUT_S: Final = 180.0
POLL_S: Final = 0.1
STOP_S: Final = 5.0


class ForkServerError(RuntimeError):
    """The fork host did not come up; the message has its last lines."""


@dataclass(frozen=True, slots=True)
class ForkPlan:
    """What a fork host is started with."""

    python: str
    module: str
    preload: Path
    env: Mapping[str, str] = field(repr=False)
    hints: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The same for engines that can come from the same host."""
        text = json.dumps([self.python, self.module, sorted(self.env.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def plan_for(spec: LaunchSpec, preloads: Mapping[str, Path] = PRELOADS) -> ForkPlan | None:
    """How to fork the engine that `spec` starts cold; None where it is not known how."""
    if len(spec.argv) < 3 or spec.argv[1] != "-m" or spec.argv[2] not in preloads:
        return None
    each_time = tuple(filter(None, (RUN_DIR, spec.api_key)))
    env = {name: value for name, value in spec.env.items() if not any(part in value for part in each_time)}
    module = spec.argv[2]
    return ForkPlan(spec.argv[0], module, preloads[module], env, (spec.model_path,))


class ForkServer(FollowedProcess):
    """One fork host. Made and used in one event loop; `stop` is due however `start` ends."""

    def __init__(self, plan: ForkPlan, log: logging.Logger) -> None:
        super().__init__(log)
        self._folder = Path(tempfile.mkdtemp(prefix="tribes-fork-"))  # mode 0700: its socket is for this user alone
        self.socket = self._folder / "s"
        self.ready_in_s: float | None = None
        argv = [plan.python, str(HOST), plan.module, str(plan.preload), str(self.socket), *plan.hints]
        try:
            self._process = spawn(argv, environment(plan.python, plan.env))
        except OSError:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._follow(f"fork-host-{self.pid}", cast(IO[str], self._process.stdout), self._process.wait)

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_ready(self) -> bool:
        """Whether engines can be asked for now."""
        return self.ready_in_s is not None and not self._exited.done()

    def memory(self) -> Memory:
        """Of the host alone, without the engines it forked."""
        return memory_of([self.pid])

    async def until_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        started = time.monotonic()
        while not self.socket.exists():
            if self._exited.done():
                code = await self.wait()
                raise ForkServerError(f"the fork host ended with exit code {code}{self._last_words()}")
            if time.monotonic() - started > timeout_s:
                raise ForkServerError(f"the fork host was not ready after {timeout_s:g} s{self._last_words()}")
            await asyncio.sleep(POLL_S)
        self.ready_in_s = time.monotonic() - started
        self._log.info("the fork host is ready after %.1f s", self.ready_in_s)

    async def stop(self) -> None:
        """The engines it forked go on: each belongs to the replica that asked for it."""
        cast(IO[str], self._process.stdin).close()
        await asyncio.wait([self._exited], timeout=STOP_S)
        if not self._exited.done():
            self._process.send_signal(signal.SIGKILL)
            await asyncio.wait([self._exited], timeout=STOP_S)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def _last_words(self) -> str:
        return "".join(f"\n  {line}" for line in self.last_lines[-20:])

"""Role: run one engine server: start it, know that it is well, stop it. Owns: its process tree, port and health.

Every method belongs to the event loop that called `start`. A server is started once, and `stop` is due however it ends.
When it dies, it stays dead: the Serve replica that owns it fails its health check and Ray Serve replaces the replica.
Must not know: Ray, requests, which engine it is (`LaunchSpec` says all).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cluster.engines.child import EngineChild, GuardedChild
from cluster.engines.diagnosis import TOO_SLOW, UNKNOWN, diagnose
from cluster.engines.forked import ForkedChild, ForkUnavailableError
from cluster.engines.launch import LaunchSpec, free_port

if TYPE_CHECKING:
    import aiohttp

START_POLL_S: Final = 0.25
START_PROBE_TIMEOUT_S: Final = 5.0
PORT_TRIES: Final = 3
FORKED_SHARE: Final = 0.5
"""How much of `start_timeout_s` a forked engine may take before a cold one is started instead."""
REPORTED_LINES: Final = 50
OK: Final = 200
REFUSED: Final = (401, 403)


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """When a running server counts as hung. Patient by default: a long prefill is no hang; restarts cost minutes."""

    interval_s: float = 5.0
    timeout_s: float = 25.0
    failures: int = 3


class EngineStartError(RuntimeError):
    """The server did not become healthy. The message has the cause, the cure and the engine's last lines."""

    def __init__(self, reason: str, kind: str, cure: str, last_lines: list[str]) -> None:
        self.reason = reason
        self.kind = kind
        self.cure = cure
        self.last_lines = last_lines[-REPORTED_LINES:]
        output = "\n  ".join(self.last_lines) or "(no output)"
        super().__init__(f"{reason}\ncure: {cure}\nlast lines of the engine:\n  {output}")

    def __reduce__(self) -> tuple[Any, ...]:  # crosses process borders as Ray's cause of a failed replica
        return type(self), (self.reason, self.kind, self.cure, self.last_lines)


class EngineServer:
    """One engine server, from `start` to `stop`. `make_spec` builds its LaunchSpec for a port chosen at start.

    `fork_host`: the socket of a process that forks this engine; whatever goes wrong with that ends in a cold start.
    """

    def __init__(
        self,
        make_spec: Callable[[int], LaunchSpec],
        log: logging.Logger,
        *,
        host: str = "127.0.0.1",
        stop_grace_s: float = 25.0,  # SGLang sees the signal after up to 5 s and frees its memory in up to 15
        health: HealthPolicy | None = None,
        fork_host: Path | None = None,
    ) -> None:
        self._make_spec = make_spec
        self._log = log
        self._host = host
        self._stop_grace_s = stop_grace_s
        self._health = health or HealthPolicy()
        self._spec: LaunchSpec | None = None
        self._fork_host = fork_host
        self._child: EngineChild | None = None
        self._session: aiohttp.ClientSession | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._stopper: asyncio.Task[None] | None = None
        self._dead: asyncio.Future[str] | None = None
        self.started_in_s: float | None = None
        self.forked = False
        """Whether the engine came from the fork host rather than cold."""

    @property
    def base_url(self) -> str:
        return self._started_spec().base_url

    @property
    def api_key(self) -> str:
        return self._started_spec().api_key

    @property
    def model_name(self) -> str:
        return self._started_spec().served_model_name

    @property
    def pid(self) -> int | None:
        """The root of the engine's process tree (its guard)."""
        return self._child.pid if self._child else None

    def is_alive(self) -> bool:
        """Healthy once, and neither dead, hung nor stopped since."""
        return self.started_in_s is not None and self._dead is not None and not self._dead.done()

    async def wait_dead(self) -> str:
        """How the server ended, once it has."""
        if self._dead is None:
            raise RuntimeError("this engine server was not started")
        return await asyncio.shield(self._dead)

    async def start(self) -> None:
        """Returns when the server is healthy; else nothing of it is left and EngineStartError says why."""
        import aiohttp

        if self._dead is not None or self._stopper is not None:
            raise RuntimeError("an engine server is started once, and not after its stop; make a new one")
        self._dead = asyncio.get_running_loop().create_future()
        self._session = aiohttp.ClientSession()
        try:
            await self._start_on_a_free_port()
        except BaseException as error:  # cancellation too: nothing may be left behind
            self._declare_dead(f"did not start: {getattr(error, 'reason', error)!s}")
            await self.stop(grace_s=0.0)
            raise
        self._watcher = asyncio.create_task(self._watch(), name=f"engine-watch-{self.pid}")

    async def stop(self, grace_s: float | None = None) -> None:
        """Ends the whole tree: SIGTERM, up to `grace_s` (at most the constructor's), SIGKILL. Idempotent."""
        if self._stopper is None:
            grace_s = self._stop_grace_s if grace_s is None else min(grace_s, self._stop_grace_s)
            self._stopper = asyncio.create_task(self._stop(grace_s), name=f"engine-stop-{self.pid}")
        await asyncio.shield(self._stopper)

    async def _stop(self, grace_s: float) -> None:
        self._declare_dead("stopped")
        if self._watcher is not None:
            self._watcher.cancel()
        if self._child is not None:
            await self._child.stop(grace_s)
        if self._session is not None:
            await self._session.close()

    async def _start_on_a_free_port(self) -> None:
        started = time.monotonic()
        ports_left = PORT_TRIES
        while True:
            self._spec = self._make_spec(free_port(self._host))
            self._log.info("starting %s on %s", self._spec.served_model_name, self._spec.base_url)
            self._child = child = await self._new_child(self._spec)
            try:
                if self._stopper is not None:  # stopped meanwhile: the stop did not see this child
                    raise _start_error(child, "the engine was stopped while it started")
                await self._until_healthy(child)
            except EngineStartError as error:
                ports_left -= error.kind == "port_in_use"
                again = ports_left and error.kind == "port_in_use"
                if self._stopper is not None or not (again or isinstance(child, ForkedChild)):
                    await child.stop(grace_s=0.0)
                    raise
                if again:
                    self._log.warning("port %d was taken meanwhile; trying another", self._spec.port)
                else:
                    self._log.warning("the forked engine did not start (%s): starting a cold one", error.reason)
                    self._fork_host = None
                await child.stop(grace_s=0.0)
            else:
                self.started_in_s = time.monotonic() - started
                self.forked = isinstance(child, ForkedChild)
                how = "forked" if self.forked else "cold"
                self._log.info("%s is up after %.1f s (%s)", self._spec.served_model_name, self.started_in_s, how)
                return

    async def _new_child(self, spec: LaunchSpec) -> EngineChild:
        if self._fork_host is not None:
            try:
                return await ForkedChild.start(self._fork_host, spec, self._log, self._stop_grace_s)
            except ForkUnavailableError as error:
                self._log.warning("no engine from the fork host (%s): starting a cold one", error)
                self._fork_host = None
        return GuardedChild(spec, self._log, self._stop_grace_s)

    async def _until_healthy(self, child: EngineChild) -> None:
        """Races health against an early exit and the deadline."""
        timeout_s = child.spec.start_timeout_s * (FORKED_SHARE if isinstance(child, ForkedChild) else 1)
        exited = asyncio.create_task(child.wait())
        ready = asyncio.create_task(self._poll_until_ready(child.spec))
        try:
            await asyncio.wait((exited, ready), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                raise _start_error(child, f"the engine ended with exit code {exited.result()} before it was healthy")
            if not ready.done():
                raise _start_error(child, f"the engine was not healthy after {timeout_s:g} s")
            ready.result()
        finally:
            await _cancel(exited, ready)

    async def _poll_until_ready(self, spec: LaunchSpec) -> None:
        while not (  # noqa: ASYNC110  # another process turns healthy: there is nothing to wait on but its answers
            await self._get(spec, spec.health_path, START_PROBE_TIMEOUT_S) == OK
            # Health needs no key, so whoever took our port could have answered; our random key tells the two apart.
            and await self._get(spec, "/v1/models", START_PROBE_TIMEOUT_S) not in (*REFUSED, None)
        ):
            await asyncio.sleep(START_POLL_S)

    async def _watch(self) -> None:
        """Notices the end of the process at once, and a hang by failed health checks in a row."""
        child, spec = self._child, self._started_spec()
        assert child is not None  # only called after a start
        exited = asyncio.create_task(child.wait())
        failures = 0
        try:
            while failures < self._health.failures:
                await asyncio.wait((exited,), timeout=self._health.interval_s)
                if exited.done():
                    self._declare_dead(
                        f"the engine ended by itself with exit code {exited.result()}{_last_words(child)}"
                    )
                    return
                healthy = await _first_of(self._get(spec, spec.health_path, self._health.timeout_s), exited) == OK
                failures = 0 if healthy or exited.done() else failures + 1
            self._declare_dead(f"the engine hangs: {failures} health checks in a row failed")
            await child.stop(grace_s=0.0)
        finally:
            await _cancel(exited)

    async def _get(self, spec: LaunchSpec, path: str, timeout_s: float) -> int | None:
        """The status of a GET with our key; None when there was no answer in time."""
        import aiohttp

        assert self._session is not None  # only called after a start
        headers = {"Authorization": f"Bearer {spec.api_key}"}
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.get(spec.base_url + path, headers=headers, timeout=timeout) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    def _declare_dead(self, how: str) -> None:
        if self._dead is not None and not self._dead.done():
            self._dead.set_result(how)
            if how != "stopped":
                self._log.error("%s", how)

    def _started_spec(self) -> LaunchSpec:
        if self._spec is None:
            raise RuntimeError("this engine server was not started")
        return self._spec


def _last_words(child: EngineChild) -> str:
    own = [line for line in child.last_lines if not line.startswith("guard:")]
    return f"; its last line: {own[-1]}" if own else ""


def _start_error(child: EngineChild, reason: str) -> EngineStartError:
    lines = child.last_lines
    verdict = diagnose(lines, child.exit_code) or (TOO_SLOW if child.exit_code is None else UNKNOWN)
    return EngineStartError(reason, verdict.kind, verdict.cure, lines)


async def _first_of(attempt: Coroutine[Any, Any, int | None], other: asyncio.Task[int]) -> int | None:
    """The attempt's result, or None as soon as the other task is done."""
    task = asyncio.create_task(attempt)
    try:
        await asyncio.wait((task, other), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await _cancel(task)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

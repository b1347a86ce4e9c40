"""Role: the fork host: a process that has imported an engine, and forks one for everybody who asks.

Run as a file by the interpreter that has the engine, standard library only until the preload:
`python fork_host.py MODULE PRELOAD.py SOCKET [HINT...]`. It imports what `preload(hints)` of PRELOAD.py imports, proves
in a first child that forked ones compute, and listens on SOCKET, which appears only then. The protocol is described in
`cluster/engines/forked.py`. One thread, one request at a time; between the preload and a fork it computes nothing.

    owner -> fork host -> guard (a fork that becomes guard.py) -> engine (a fork that runs MODULE as `python -m` does)

The owner's end of our stdin closes: we end, and the engines go on, each under its own guard, which watches its replica.
We are a child subreaper: should a guard be killed, what its engine had started comes to us, and we kill it.
Owns: the imports, the forking, children that nobody else ends. Must not know: any engine, ports, replicas.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

GUARD = Path(__file__).parents[1] / "engines" / "guard.py"
REQUEST_S = 5.0
REQUEST_BYTES = 1 << 20
PROBE_S = 20.0
TICK_MS = 1000


def load(path: Path) -> ModuleType:
    """A file as a module, without its folder on sys.path: the engine's own imports must find what they always find."""
    spec = importlib.util.spec_from_file_location(f"tribes_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


guard = load(GUARD)


class OwnerWatch:
    """Ends this process when the owner goes during the preload. Its thread is gone before the first fork."""

    def __enter__(self) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(0, select.POLLIN)
        while not self._done.is_set():
            if poll.poll(100):
                os._exit(0)


class Engine:
    """In the forked engine: what to run."""

    def __init__(self, request: dict[str, Any], go: int) -> None:
        self._request = request
        self._go = go

    def run(self, module: str) -> None:
        """As `python -m MODULE ARGS...`; returns or raises as that ends."""
        os.read(self._go, 1)  # the guard closes its end once it watches
        os.close(self._go)
        os.environ.update(self._request["env"])
        sys.argv = [module, *self._request["args"]]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


class Host:
    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._guards: set[int] = set()
        self._helpers = guard.children_by_parent().get(os.getpid(), [])  # what the preload started
        self._orphans = False
        """Whether there may be any."""

    def serve(self) -> Engine:
        """Until the owner goes, which ends this process; returns in each forked engine."""
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        while True:
            for fd, _ in poll.poll(TICK_MS):
                if fd == 0 and not guard.read_some(0):
                    os._exit(0)
                if fd == self._listener.fileno() and (engine := self._take()) is not None:
                    return engine
            self._reap()

    def _take(self) -> Engine | None:
        connection, _ = self._listener.accept()
        log: list[int] = []
        try:
            connection.settimeout(REQUEST_S)
            request, log = receive(connection)
            request["owner"] = peer(connection)
            connection.settimeout(None)
            return self._fork(connection, request, log[0])
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError):
                connection.sendall(f"error {error}\n".encode())
            return None
        finally:
            connection.close()
            for fd in log:
                os.close(fd)

    def _fork(self, connection: socket.socket, request: dict[str, Any], log: int) -> Engine | None:
        """None here, the engine in the engine; the guard between the two never returns."""
        sys.stdout.flush()
        sys.stderr.flush()
        # Blocked until guard.py handles them: one in between would end the guard and leave the engine.
        signal.pthread_sigmask(signal.SIG_BLOCK, guard.HANDLED_SIGNALS)
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, guard.HANDLED_SIGNALS)
            self._guards.add(pid)
            return None
        try:
            self._listener.close()
            os.setsid()
            guard.prctl(guard.PR_SET_CHILD_SUBREAPER, 1)
            os.dup2(log, 1)
            os.dup2(log, 2)
            go, gone = os.pipe()
            engine = os.fork()
            if not engine:
                os.close(gone)
                return become_engine(request, go)
            os.close(go)
            become_guard(connection, engine, request, gone)
        except BaseException as error:
            guard.say(f"cannot fork an engine: {error}")
            os._exit(guard.CANNOT_START)

    def _reap(self) -> None:
        """Our guards when they end; whatever else has become our child was the engine of one that was killed."""
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                self._guards.discard(pid)
                self._orphans = True
        if self._orphans:
            mine = guard.children_by_parent().get(os.getpid(), ())
            orphans = [pid for pid in mine if pid not in self._guards and pid not in self._helpers]
            for pid in orphans:
                guard.send(pid, signal.SIGKILL)
            self._orphans = bool(orphans)  # their children come to us when they are dead


def become_guard(connection: socket.socket, engine: int, request: dict[str, Any], gone: int) -> NoReturn:
    os.dup2(connection.fileno(), 0)
    os.write(0, f"pid {os.getpid()}\n".encode())
    os.set_inheritable(gone, True)
    arguments = [str(engine), str(request["owner"]), str(request["grace_s"]), request["run_dir"], str(gone)]
    os.execv(sys.executable, [sys.executable, "-I", "-S", str(GUARD), "--adopt", *arguments])


def become_engine(request: dict[str, Any], go: int) -> Engine:
    guard.prctl(guard.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in guard.HANDLED_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, guard.HANDLED_SIGNALS)
    # An event loop's descriptor for signals would otherwise be that of its parent in whatever this engine forks.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    return Engine(request, go)


def peer(connection: socket.socket) -> int:
    """The pid of who asks, by the kernel's word. Only this user may."""
    pid, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if user != os.getuid():
        raise PermissionError(f"user {user} may not ask")
    return int(pid)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """One line of JSON, and the descriptor that came with it."""
    data, fds, _, _ = socket.recv_fds(connection, 65536, 1)
    try:
        while not data.endswith(b"\n"):
            more = connection.recv(65536)
            if not more or len(data) > REQUEST_BYTES:
                raise ValueError("the request is cut off or too long")
            data += more
        if not fds:
            raise ValueError("the request has no descriptor")
        request: dict[str, Any] = json.loads(data)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return request, fds


def prove(probe: Any) -> None:
    """Run `probe` in a child; SystemExit when it fails or hangs, as OpenMP does if it has run before the fork."""
    pid = os.fork()
    if pid == 0:
        try:
            probe()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    deadline = time.monotonic() + PROBE_S
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            sys.exit("fork host: a forked process hangs when it computes: no fork here")
        time.sleep(0.02)
    if ended[1] != 0:
        sys.exit("fork host: a forked process fails when it computes: no fork here")


def listen(path: str) -> socket.socket:
    """The name appears when connections are taken."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"{path}.new")
    listener.listen(64)
    Path(f"{path}.new").rename(path)
    return listener


def main(argv: list[str]) -> None:
    module, preload, path, *hints = argv
    if sys.path[0] == str(Path(__file__).parent):
        sys.path[0] = ""  # as `python -m` has it
    guard.prctl(guard.PR_SET_CHILD_SUBREAPER, 1)
    with OwnerWatch():
        engine_side = load(Path(preload))
        engine_side.preload(hints)
        gc.collect()
    prove(engine_side.probe)
    gc.freeze()  # a collection in a child would write to every object, and so copy every page
    Host(listen(path)).serve().run(module)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Role: stand between a replica and its engine, so that nothing of the engine outlives the replica, whatever kills it.

Run as a file by `supervisor.py`: `python -I -S guard.py OWNER_PID GRACE_S RUN_DIR -- ENGINE ARGV...`. It is two
processes of this one program, each a child subreaper in its own session, single-threaded, standard library only:

    owner -> outer guard -> inner guard -> engine -> whatever it starts (double forks come back to the inner guard)

Two, because Ray SIGKILLs the direct children of a worker that exits: losing the outer guard must not lose the tree.
Each lives until the process it started ends. Both stop the engine when stdin (a pipe held by the owner) ends, the
parent is gone, or SIGTERM comes: SIGTERM to the engine's main process, which knows best how to end its children,
GRACE_S to do so, then SIGTERM and soon SIGKILL to everything left in the tree. SIGUSR1 cuts the grace short.
The exit code is the engine's own (128 + N when signal N ended it).

An engine forked from a pre-imported process (`cluster/coldstart/fork_host.py`) has one guard, which adopts it:
`guard.py --adopt ENGINE_PID OWNER_PID GRACE_S RUN_DIR GO_FD`. Its stdin is a socket to the owner, who is not its
parent: closed, it ends the tree, as does the owner's death; a byte that comes over it is the number of a signal; the
last line that goes over it is `exit CODE`. Should this guard be killed, the kernel kills the engine (PDEATHSIG), and
the fork host, a subreaper, what the engine had started.

Owns: the process tree, RUN_DIR (removed at the end), the /dev/shm entries the tree leaves. Must not know: engines.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
HANDLED_SIGNALS = {*STOP_SIGNALS, signal.SIGUSR1, signal.SIGCHLD}
TICK_S = 1.0
LEDGER_PERIOD_S = 5.0
LINGER_S = 0.5  # for helpers that end by themselves once the engine is gone
TRACKER_LINGER_S = 2.0  # Python's resource tracker tidies up when the last process that reports to it is gone
TRACKER = b"multiprocessing.resource_tracker"
KILL_BOUND_S = 10.0  # a process stuck in a driver call may not die at all: report it rather than wait for ever
CANNOT_START = 127


def say(text: str) -> None:
    """One line into the engine's output. The owner may be gone already."""
    with contextlib.suppress(OSError):
        os.write(2, f"guard: {text}\n".encode())


def prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def all_pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def children_by_parent() -> dict[int, list[int]]:
    """Every process under its parent, zombies included: they are gone only when reaped."""
    children: dict[int, list[int]] = {}
    for pid in all_pids():
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = Path(f"/proc/{pid}/stat").read_bytes()
            parent = int(stat[stat.rindex(b")") + 2 :].split()[1])  # the name before ")" may hold anything
            children.setdefault(parent, []).append(pid)
    return children


def descendants(root: int) -> list[int]:
    """Every process below `root`."""
    children = children_by_parent()
    found = list(children.get(root, ()))
    for pid in found:  # grows while walked: breadth first
        found.extend(children.get(pid, ()))
    return found


def shared_memory_of(pid: int, folder: str) -> Iterator[tuple[str, int]]:
    """(path, inode) of what a process has mapped or open below `folder`. PermissionError when that is hidden."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
            fields = line.split(None, 5)
            if len(fields) == 6 and fields[5].startswith(folder + "/"):
                path: str | None = fields[5]
                if fields[5].endswith(" (deleted)"):
                    # sem_open maps a file under a passing name and then links it to its own: only the inode tells.
                    path = {entry.inode(): entry.path for entry in os.scandir(folder)}.get(int(fields[4]))
                if path is not None:
                    yield path, int(fields[4])
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                target = str(link.readlink())
                if target.startswith(folder + "/"):
                    yield target, link.stat().st_ino


class SharedMemoryLedger:
    """What the tree put into /dev/shm, so that a hard death leaks no memory.

    An entry is removed only when all of this holds: it was not there before the engine, a process of the tree was seen
    using it, the same inode still has the name, it is ours and closed to other users, and no living process uses it.
    What is created and abandoned between two looks stays behind: better a leak than a neighbour's memory.
    """

    def __init__(self, folder: str = "/dev/shm") -> None:
        self._folder = folder
        self._seen: dict[str, int] = {}
        with contextlib.suppress(OSError):
            self._before = {entry.stat().st_ino for entry in os.scandir(folder)}
            return
        self._before = set()

    def note(self, pids: Iterable[int]) -> None:
        for pid in pids:
            with contextlib.suppress(PermissionError):
                for path, inode in shared_memory_of(pid, self._folder):
                    if inode not in self._before:
                        self._seen[path] = inode

    def release(self) -> list[str]:
        """Unlink what the tree, now gone, left; the names removed."""
        in_use = self._inodes_in_use() if self._seen else None
        removed = []
        for path, inode in self._seen.items():
            with contextlib.suppress(OSError):
                stat = Path(path).lstat()
                private = stat.st_uid == os.geteuid() and not stat.st_mode & 0o077
                if in_use is not None and private and stat.st_ino == inode and inode not in in_use:
                    Path(path).unlink()
                    removed.append(path)
        return removed

    def _inodes_in_use(self) -> set[int] | None:
        """None when one of our own processes hides what it uses: then nothing can be called unused."""
        in_use: set[int] = set()
        for pid in all_pids():
            try:
                in_use.update(inode for _, inode in shared_memory_of(pid, self._folder))
            except PermissionError:
                with contextlib.suppress(OSError):
                    # A container's init may be closed to all; of the rest, one of ours could be a memory's other user.
                    if pid != 1 and Path(f"/proc/{pid}").stat().st_uid == os.geteuid():
                        return None
        return in_use


class Guard:
    """Watches one child and the tree below it. `run` returns the child's exit code once nothing of the tree is left."""

    def __init__(self, child: int, parent: int | None, grace_s: float, ledger: SharedMemoryLedger | None) -> None:
        self._child = child
        self._parent = parent
        self._grace_s = grace_s
        self._ledger = ledger
        self._exit_code: int | None = None
        self._deadline: float | None = None  # set once stopping: when patience ends
        self._ledger_due = 0.0
        self._wakeup = wakeup_pipe()
        self._poll = select.poll()
        self._poll.register(self._wakeup, select.POLLIN)
        self._poll.register(0, select.POLLIN)
        self._owner: int | None = None

    def watch(self, owner: int) -> None:
        """Stop when this process, which is not our parent, is gone: a copy of its end of stdin may outlive it."""
        try:
            self._owner = os.pidfd_open(owner)
        except ProcessLookupError:
            self._stop("the owner is gone")
        else:
            self._poll.register(self._owner, select.POLLIN)

    def run(self) -> int:
        while True:
            self._reap()
            now = time.monotonic()
            if self._exit_code is not None or (self._deadline is not None and now >= self._deadline):
                break
            if self._parent is not None and os.getppid() != self._parent:
                self._stop("the owner is gone")
            self._note_shared_memory(now)
            self._wait(now)
        self._clear()
        return 128 + signal.SIGKILL if self._exit_code is None else self._exit_code

    def _wait(self, now: float) -> None:
        wait_s = TICK_S if self._deadline is None else min(TICK_S, max(0.0, self._deadline - now))
        for fd, _ in self._poll.poll(wait_s * 1000):
            data = b"" if fd == self._owner else read_some(fd)
            if fd == self._owner:
                self._poll.unregister(fd)
                self._stop("the owner is gone")
            elif fd == 0 and not data:
                self._poll.unregister(0)
                self._stop("the owner closed its end")
            else:  # numbers of signals: delivered to this process, or told by an owner who is not its parent
                if any(number in data for number in STOP_SIGNALS):
                    self._stop("asked to stop")
                if signal.SIGUSR1 in data:
                    self._hurry(now)

    def _stop(self, why: str) -> None:
        if self._deadline is not None:
            return
        self._deadline = time.monotonic() + self._grace_s
        if self._ledger is not None:
            say(f"{why}, stopping the engine")
        self._note_shared_memory(self._ledger_due)
        send(self._child, signal.SIGTERM)

    def _hurry(self, now: float) -> None:
        self._stop("asked to stop at once")
        if self._ledger is None:
            send(self._child, signal.SIGUSR1)  # the inner guard ends the tree, and only it can tidy /dev/shm
        else:
            self._deadline = now

    def _note_shared_memory(self, now: float) -> None:
        if self._ledger is not None and now >= self._ledger_due:
            self._ledger.note(descendants(os.getpid()))
            self._ledger_due = time.monotonic() + LEDGER_PERIOD_S

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
                if ended[0] == self._child:
                    code = os.waitstatus_to_exitcode(ended[1])
                    self._exit_code = code if code >= 0 else 128 - code

    def _clear(self) -> None:
        """Nothing of the tree stays: asked first, then killed, round after round while new processes appear."""
        started = time.monotonic()
        rest = descendants(os.getpid())
        if self._ledger is not None:
            self._ledger.note(rest)
        for pid in rest:
            send(pid, signal.SIGTERM)
        while rest and time.monotonic() < started + LINGER_S + KILL_BOUND_S:
            waited_s = time.monotonic() - started
            for pid in rest:
                if waited_s >= (TRACKER_LINGER_S if is_tracker(pid) else LINGER_S):
                    send(pid, signal.SIGKILL)
            time.sleep(0.02)
            self._reap()
            rest = descendants(os.getpid())
        if rest:
            say(f"cannot end processes {rest}: they ignore SIGKILL; a driver or file system hangs")
        if self._ledger is not None and (removed := self._ledger.release()):
            say(f"removed {len(removed)} left-over entries of shared memory: {' '.join(removed)}")


def is_tracker(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return TRACKER in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def read_some(fd: int) -> bytes:
    """What came; nothing at the end, however it came about (a socket whose peer died may raise instead)."""
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def wakeup_pipe() -> int:
    """A descriptor that turns readable with the number of each signal that arrives, those blocked so far included."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in HANDLED_SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)
    return reader


def start_engine(argv: list[str]) -> int:
    """Fork and exec in a session of its own. Called with the handled signals blocked: the engine unblocks them."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number in (*HANDLED_SIGNALS, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)
            os.execvp(argv[0], argv)
        except OSError as error:
            say(f"cannot start {argv[0]}: {error.strerror}")
        finally:
            os._exit(CANNOT_START)
    return pid


def run_inner(outer: int, grace_s: float, argv: list[str]) -> int:
    os.setsid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != outer:  # it died before the line above took effect
        return CANNOT_START
    ledger = SharedMemoryLedger()
    return Guard(start_engine(argv), outer, grace_s, ledger).run()


def adopt(arguments: list[str]) -> int:
    """Guard an engine that was this process's child before it became this program, and waits for GO_FD to close."""
    engine, owner, grace_s, run_dir = int(arguments[0]), int(arguments[1]), float(arguments[2]), arguments[3]
    ledger = SharedMemoryLedger()
    os.close(int(arguments[4]))
    guard = Guard(engine, None, grace_s, ledger)
    guard.watch(owner)
    code = guard.run()
    shutil.rmtree(run_dir, ignore_errors=True)
    with contextlib.suppress(OSError):  # the owner may be gone
        os.write(0, f"exit {code}\n".encode())
    return code


def main(arguments: list[str]) -> int:
    # Blocked until a handler stands: a signal in between would end a guard and leave what it had just started.
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
    if arguments[0] == "--adopt":
        return adopt(arguments[1:])
    owner, grace_s, run_dir = int(arguments[0]), float(arguments[1]), arguments[2]
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != owner:
        return CANNOT_START
    outer = os.getpid()
    inner = os.fork()
    if inner == 0:
        code = run_inner(outer, grace_s, arguments[4:])
    else:
        # The inner guard needs its own grace plus the time to clear up; only then is it itself past waiting for.
        code = Guard(inner, owner, grace_s + LINGER_S + KILL_BOUND_S + 2, None).run()
    shutil.rmtree(run_dir, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

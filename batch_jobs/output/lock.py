"""One driver per output folder.

Role: take, keep and give back the lock file. Owns: when a lock counts as abandoned.
Must not know: what the folder is for.

The lock names the run and the process. It is abandoned when its process is gone (same host) or when the heartbeat
beside it, `_heartbeat-<run>`, is older than STALE_S (another host). Whoever replaces or removes a lock, its owner
included, first creates `_lock.taken-<run of that lock>` exclusively and reads the lock again: so one driver at a time
changes it, and only while it is what that driver thinks. The heartbeat has its own file for the same reason: a driver
that was stopped for minutes must not write itself back in. On object stores "exclusive" is a check and a put; there
the new owner reads its lock back after a pause, which leaves a window only for puts slower than the pause.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from batch_jobs.errors import JobRefused
from batch_jobs.output.parts import LOCK_FILE
from batch_jobs.storage import Storage

HEARTBEAT_S = 5.0
STALE_S = 60.0
_READ_BACK_S = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """Contents of the lock file. `process_start` tells a process from a later one with the same pid."""

    run_id: str
    pid: int
    host: str
    process_start: str
    taken_unix_s: float

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        return f"run {self.run_id} (pid {self.pid} on {self.host})"


def process_start(pid: int) -> str | None:
    """A value that differs between any two processes that had this pid; None when there is none now."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _start_without_proc(pid)
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]  # starttime: field 22, counted from the pid


def _start_without_proc(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return "alive"
    return "alive"


class OutputLock:
    """Held from `take` to `release`; a thread keeps the heartbeat fresh."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        self._storage = storage
        start = process_start(os.getpid()) or ""
        self._owner = Owner(run_id, os.getpid(), socket.gethostname(), start, time.time())
        self._released = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="output-lock", daemon=True)

    def take(self) -> None:
        """Raises JobRefused while another driver is at work here."""
        if not self._storage.create_exclusive(LOCK_FILE, self._owner.encode()):
            self._take_over()
        if not self._storage.is_local:
            time.sleep(_READ_BACK_S)
        holder = self._read()
        if holder is None or holder.run_id != self._owner.run_id:
            raise JobRefused(f"output {self._storage.shown}: another driver took the lock just now: {holder}.")
        self._keeper.start()

    def _take_over(self) -> None:
        holder = self._read()
        if holder is None:
            raise JobRefused(f"output {self._storage.shown}: another driver has just finished here. Try again.")
        if not self._is_gone(holder):
            raise JobRefused(
                f"output {self._storage.shown}: another driver is at work here: {holder}. Wait for it or stop it. "
                f"If its host is lost, the lock can be taken {STALE_S:g} s after its last heartbeat."
            )
        with self._claim(holder) as claimed:
            if not claimed:
                raise JobRefused(
                    f"output {self._storage.shown}: another driver has taken over from {holder}, or is about to. "
                    f"Try again; if no other driver runs, one died in that very moment: delete {_claim_name(holder)}."
                )
            log.warning("taking over the output from %s, which is gone", holder)
            self._storage.write(LOCK_FILE, self._owner.encode())
            self._storage.delete(_heartbeat_name(holder))

    @contextlib.contextmanager
    def _claim(self, holder: Owner) -> Iterator[bool]:
        """The right to replace or remove the lock of `holder`, if it is still there and nobody else has that right."""
        if not self._storage.create_exclusive(_claim_name(holder), self._owner.encode()):
            yield False
            return
        try:
            yield self._read() == holder
        finally:
            self._storage.delete(_claim_name(holder))

    def _is_gone(self, holder: Owner) -> bool:
        if holder.host == socket.gethostname():
            return process_start(holder.pid) != holder.process_start
        try:
            seen_unix_s = float(self._storage.read(_heartbeat_name(holder)))
        except FileNotFoundError:
            seen_unix_s = holder.taken_unix_s
        return time.time() - seen_unix_s > STALE_S

    def _read(self) -> Owner | None:
        try:
            return Owner(**json.loads(self._storage.read(LOCK_FILE)))
        except FileNotFoundError:
            return None

    def _keep(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            try:
                self._storage.write(_heartbeat_name(self._owner), str(time.time()).encode())
            except OSError as error:
                log.warning("heartbeat of the output lock failed, will try again: %s", error)

    def release(self) -> None:
        """Give the folder back, unless it is somebody else's by now."""
        self._released.set()
        if self._keeper.is_alive():
            self._keeper.join(HEARTBEAT_S)
        self._storage.delete(_heartbeat_name(self._owner))
        with self._claim(self._owner) as claimed:
            if claimed:
                self._storage.delete(LOCK_FILE)


def _claim_name(holder: Owner) -> str:
    return f"_lock.taken-{holder.run_id}"


def _heartbeat_name(holder: Owner) -> str:
    return f"_heartbeat-{holder.run_id}"

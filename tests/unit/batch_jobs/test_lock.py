"""One driver per output: refusal, takeover, races, heartbeat."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from batch_jobs.errors import JobRefused
from batch_jobs.output import lock as lock_module
from batch_jobs.output.lock import STALE_S, OutputLock, process_start
from batch_jobs.output.parts import LOCK_FILE
from batch_jobs.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def write_lock(storage: Storage, **changes: object) -> None:
    owner = {
        "run_id": "old",
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "process_start": process_start(os.getpid()),
        "taken_unix_s": time.time(),
    }
    storage.write(LOCK_FILE, json.dumps(owner | changes).encode())


def holder(storage: Storage) -> str:
    return str(json.loads(storage.read(LOCK_FILE))["run_id"])


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_take_and_release(storage: Storage) -> None:
    lock = OutputLock(storage, "new")
    lock.take()
    assert holder(storage) == "new"
    lock.release()
    assert storage.names() == []


def test_a_living_driver_is_named(storage: Storage) -> None:
    write_lock(storage)
    with pytest.raises(JobRefused, match=rf"another driver is at work here: run old \(pid {os.getpid()} on"):
        OutputLock(storage, "new").take()
    assert holder(storage) == "old"


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": dead_pid()},
        {"process_start": "1"},  # the pid lives, but as another process
        {"host": "elsewhere", "taken_unix_s": time.time() - STALE_S - 1},
    ],
)
def test_abandoned_locks_are_taken_over(storage: Storage, changes: dict[str, object]) -> None:
    write_lock(storage, **changes)
    lock = OutputLock(storage, "new")
    lock.take()
    assert holder(storage) == "new" and storage.names() == [LOCK_FILE]
    lock.release()


def test_a_lock_of_another_host_lives_by_its_heartbeat(storage: Storage) -> None:
    write_lock(storage, host="elsewhere", pid=1, process_start="x", taken_unix_s=time.time() - 10 * STALE_S)
    storage.write("_heartbeat-old", str(time.time() - STALE_S / 2).encode())
    with pytest.raises(JobRefused, match="elsewhere"):
        OutputLock(storage, "new").take()
    storage.write("_heartbeat-old", str(time.time() - STALE_S - 1).encode())
    lock = OutputLock(storage, "new")
    lock.take()
    assert holder(storage) == "new" and storage.names() == [LOCK_FILE]
    lock.release()


def test_only_one_of_many_takes_over(storage: Storage) -> None:
    write_lock(storage, pid=dead_pid())
    locks = [OutputLock(storage, f"new-{number}") for number in range(8)]
    winners: list[OutputLock] = []
    barrier = threading.Barrier(len(locks))

    def compete(lock: OutputLock) -> None:
        barrier.wait()
        try:
            lock.take()
        except JobRefused:
            return
        winners.append(lock)

    threads = [threading.Thread(target=compete, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    winners[0].release()


def test_a_takeover_that_was_overtaken_gives_up(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between reading the abandoned lock and claiming it, another driver may have taken over completely."""
    write_lock(storage, pid=dead_pid())
    create = storage.create_exclusive

    def overtaken(name: str, data: bytes) -> bool:
        if name != LOCK_FILE:
            write_lock(storage, run_id="faster")
        return create(name, data)

    monkeypatch.setattr(storage, "create_exclusive", overtaken)
    with pytest.raises(JobRefused, match="has taken over from"):
        OutputLock(storage, "new").take()
    assert holder(storage) == "faster" and storage.names() == [LOCK_FILE]


def test_a_heartbeat_and_a_release_leave_a_lock_that_was_lost_meanwhile(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "HEARTBEAT_S", 0.02)
    lock = OutputLock(storage, "new")
    lock.take()
    time.sleep(0.2)
    assert time.time() - float(storage.read("_heartbeat-new")) < 5
    write_lock(storage, run_id="thief")
    time.sleep(0.1)
    lock.release()
    assert holder(storage) == "thief" and storage.names() == [LOCK_FILE]


def test_a_zombie_process_counts_as_gone(storage: Storage) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    deadline_s = time.monotonic() + 10
    while process_start(child.pid) is not None and time.monotonic() < deadline_s:
        time.sleep(0.02)  # it ends, and nobody waits for it
    write_lock(storage, pid=child.pid, process_start="whatever it was")
    lock = OutputLock(storage, "new")
    lock.take()
    lock.release()
    child.wait()

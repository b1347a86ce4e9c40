"""What the guard removes from /dev/shm: what its own tree left there, and nothing else."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.engines.guard import SharedMemoryLedger
from tests.unit.engines.processes import eventually
from tests.unit.engines.test_guard import GUARD

SHM = Path("/dev/shm")


@pytest.fixture
def name() -> Iterator[str]:
    """A prefix; whatever a failing test leaves under it goes."""
    prefix = f"tribes-test-{uuid.uuid4().hex[:8]}"
    yield prefix
    for entry in SHM.glob(f"{prefix}*"):
        entry.unlink()


def create(path: Path, mode: int = 0o600) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, mode)
    os.fchmod(fd, mode)
    os.ftruncate(fd, 4096)
    mapped = mmap.mmap(fd, 4096)
    os.close(fd)
    return mapped


def test_an_entry_that_the_tree_mapped_and_nobody_uses_is_removed(name):
    ledger = SharedMemoryLedger()
    mapped = create(SHM / name)
    ledger.note([os.getpid()])
    mapped.close()
    assert ledger.release() == [str(SHM / name)]
    assert not (SHM / name).exists()


def test_an_open_descriptor_counts_as_use(name):
    ledger = SharedMemoryLedger()
    with (SHM / name).open("w") as file:
        os.fchmod(file.fileno(), 0o600)
        ledger.note([os.getpid()])
        assert ledger.release() == []
    assert ledger.release() == [str(SHM / name)]


def test_an_entry_that_is_still_mapped_stays(name):
    ledger = SharedMemoryLedger()
    mapped = create(SHM / name)
    ledger.note([os.getpid()])
    assert ledger.release() == []
    assert (SHM / name).exists()
    mapped.close()


def test_an_entry_older_than_the_engine_stays(name):
    mapped = create(SHM / name)
    ledger = SharedMemoryLedger()
    ledger.note([os.getpid()])
    mapped.close()
    assert ledger.release() == []


def test_an_entry_that_the_tree_never_used_stays(name):
    ledger = SharedMemoryLedger()
    create(SHM / name).close()
    ledger.note([os.getpid()])
    assert ledger.release() == []


def test_an_entry_made_anew_under_the_same_name_stays(name):
    ledger = SharedMemoryLedger()
    mapped = create(SHM / name)
    ledger.note([os.getpid()])
    mapped.close()
    (SHM / name).unlink()
    (SHM / f"{name}-between").touch()  # so that the inode number is not used again
    create(SHM / name).close()
    assert ledger.release() == []


def test_an_entry_open_to_other_users_stays(name):
    """Whether they use it may be hidden from us."""
    ledger = SharedMemoryLedger()
    mapped = create(SHM / name, mode=0o666)
    ledger.note([os.getpid()])
    mapped.close()
    assert ledger.release() == []


def test_pythons_resource_tracker_outlives_the_rest_to_tidy_up(tmp_path):
    """A spawned semaphore that nobody maps any more is known to the tracker alone."""
    code = f"""
import multiprocessing as mp, os, signal, time
from pathlib import Path
lock = mp.get_context("spawn").Lock()
name = lock._semlock.name
del lock._semlock   # unmapped before the guard's first look at this process could matter
mp.util._finalizer_registry.clear()
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)   # lives until it is killed, and holds the tracker's pipe open
    Path({str(tmp_path / "ready")!r}).write_text(name)
    time.sleep(60)
time.sleep(60)
"""
    head = [sys.executable, "-I", "-S", GUARD, str(os.getpid()), "5", str(tmp_path / "run"), "--"]
    with subprocess.Popen([*head, sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as guard:
        assert eventually(lambda: (tmp_path / "ready").exists() and bool((tmp_path / "ready").read_text()))
        entry = SHM / f"sem.{(tmp_path / 'ready').read_text().strip('/')}"
        assert entry.exists()
        inner = int(Path(f"/proc/{guard.pid}/task/{guard.pid}/children").read_text())
        main = int(Path(f"/proc/{inner}/task/{inner}/children").read_text().split()[0])
        os.kill(main, signal.SIGKILL)
        assert guard.wait(10) == 128 + signal.SIGKILL
        assert b"removed" not in guard.stderr.read()
    assert not entry.exists()


def test_an_engine_that_is_killed_leaks_no_shared_memory(name, tmp_path):
    """As engines use it: multiprocessing's segments and semaphores, in a child of the main process."""
    code = f"""
import multiprocessing as mp, os, sys, time
from multiprocessing.shared_memory import SharedMemory
if os.fork() == 0:
    segment = SharedMemory("{name}-segment", create=True, size=1 << 16)
    from multiprocessing import resource_tracker
    os.kill(resource_tracker._resource_tracker._pid, 9)   # its tidying must not be what makes this test pass
    open({str(tmp_path / "ready")!r}, "w").close()
time.sleep(60)
"""
    head = [sys.executable, "-I", "-S", GUARD, str(os.getpid()), "5", str(tmp_path / "run"), "--"]
    guard = subprocess.Popen([*head, sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert eventually((tmp_path / "ready").exists)
    assert (SHM / f"{name}-segment").exists()
    inner = int(Path(f"/proc/{guard.pid}/task/{guard.pid}/children").read_text())
    main = int(Path(f"/proc/{inner}/task/{inner}/children").read_text().split()[0])
    os.kill(main, signal.SIGKILL)
    assert guard.wait(10) == 128 + signal.SIGKILL
    assert not (SHM / f"{name}-segment").exists()
    assert b"removed 1 left-over" in guard.stderr.read()
    guard.stdin.close()
    guard.stderr.close()

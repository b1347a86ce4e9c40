"""The guard with real process trees: nothing of them outlives their owner, whatever ends whom."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.engines import guard
from tests.unit.engines.processes import alive, all_gone, eventually

GUARD = str(Path(guard.__file__))
PYTHON = [sys.executable, "-I", "-S", "-c"]

# Each process of the tree leaves its pid in a file of the folder argv[1].
PRELUDE = """
import os, signal, sys, time
folder = sys.argv[1]
def here(name):
    with open(f"{folder}/{name}.tmp", "w") as f: f.write(str(os.getpid()))
    os.rename(f"{folder}/{name}.tmp", f"{folder}/{name}.pid")
def stay():
    while True: time.sleep(60)
"""
STUBBORN_TREE = """
if os.fork() == 0:
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        here("grandchild"); stay()
    here("child"); stay()
if os.fork() == 0:              # a daemon: new session, orphaned
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN)
        here("daemon"); stay()
    os._exit(0)
os.wait()
here("main")
"""
TREE = ("main", "child", "grandchild", "daemon")


class Tree:
    """An engine under its guard, as an owner would start it."""

    def __init__(self, folder: Path, script: str, grace_s: float = 0.3) -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        self.run_dir.mkdir()
        engine = [*PYTHON, textwrap.dedent(PRELUDE) + textwrap.dedent(script), str(folder)]
        head = [sys.executable, "-I", "-S", GUARD]
        self.argv = [*head, str(os.getpid()), str(grace_s), str(self.run_dir), "--", *engine]
        self.process = subprocess.Popen(
            self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )

    def pid(self, name: str) -> int:
        file = self.folder / f"{name}.pid"
        assert eventually(file.exists), name
        return int(file.read_text())

    def pids(self, *names: str) -> list[int]:
        tree = [self.pid(name) for name in names]
        return [*tree, guard.descendants(self.process.pid)[0], self.process.pid]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[type]:
    trees: list[Tree] = []

    def start_tree(script: str, grace_s: float = 0.3) -> Tree:
        trees.append(Tree(tmp_path, script, grace_s))
        return trees[-1]

    yield start_tree
    for tree in trees:
        tree.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            tree.process.wait(5)
        if tree.process.poll() is None:
            tree.process.kill()
        tree.process.stdout.close()


def test_the_engines_exit_code_is_the_guards(start):
    tree = start("sys.exit(7)")
    assert tree.process.wait(10) == 7
    assert not tree.run_dir.exists()


def test_death_by_a_signal_is_128_and_its_number(start):
    assert start("os.kill(os.getpid(), signal.SIGSEGV)").process.wait(10) == 128 + signal.SIGSEGV


def test_a_program_that_does_not_exist(tmp_path):
    argv = [sys.executable, "-I", "-S", GUARD, str(os.getpid()), "1", str(tmp_path / "run"), "--", "/no/such/program"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.wait(10) == guard.CANNOT_START
        assert b"guard: cannot start /no/such/program: No such file or directory" in process.stderr.read()


def test_output_and_arguments_pass_through(start):
    tree = start("print('hello'); print('oops', file=sys.stderr)")
    tree.process.wait(10)
    assert {b"hello", b"oops"} <= set(tree.process.stdout.read().split(b"\n"))


def test_the_engine_sees_ordinary_signals_and_an_empty_stdin(start):
    tree = start("""
        print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, signal.pthread_sigmask(signal.SIG_BLOCK, []) == set())
        print(sys.stdin.read() == "", os.getpgrp() == os.getpid())
    """)
    assert tree.process.wait(10) == 0
    assert tree.process.stdout.read().split() == [b"True"] * 4


def test_sigterm_lets_the_engine_end_in_its_own_way(start):
    tree = start(
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        here("main"); stay()
    """,
        grace_s=10,
    )
    tree.pid("main")
    started = time.monotonic()
    tree.process.terminate()
    assert tree.process.wait(10) == 3
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("how", ["sigterm", "stdin"])
def test_everything_ends_with_an_order_or_with_the_owners_end_of_the_pipe(start, how):
    tree = start(STUBBORN_TREE + "signal.signal(signal.SIGTERM, signal.SIG_IGN); stay()")
    pids = tree.pids(*TREE)
    assert all(alive(pid) for pid in pids)
    tree.process.terminate() if how == "sigterm" else tree.process.stdin.close()
    assert tree.process.wait(10) == 128 + signal.SIGKILL
    assert all_gone(pids, 1)
    assert not tree.run_dir.exists()


def test_what_outlives_the_engine_is_killed(start):
    tree = start(STUBBORN_TREE + "time.sleep(0.3); sys.exit(5)")
    pids = tree.pids(*TREE)
    assert tree.process.wait(10) == 5
    assert all_gone(pids, 1)


def test_sigusr1_cuts_the_grace_short(start):
    tree = start("signal.signal(signal.SIGTERM, signal.SIG_IGN); here('main'); stay()", grace_s=60)
    pids = tree.pids("main")
    tree.process.terminate()
    time.sleep(0.2)
    assert all(alive(pid) for pid in pids)
    tree.process.send_signal(signal.SIGUSR1)
    assert tree.process.wait(10) == 128 + signal.SIGKILL
    assert all_gone(pids, 1)


@pytest.mark.parametrize("victim", ["outer", "inner", "both at once"])
def test_losing_a_guard_loses_nothing(start, victim):
    """Ray SIGKILLs the direct children of a worker that exits: the outer guard."""
    tree = start(STUBBORN_TREE + "stay()")
    pids = tree.pids(*TREE)
    inner, outer = pids[-2:]
    if victim == "both at once":
        os.kill(outer, signal.SIGSTOP)  # cannot react: as good as gone
        tree.process.stdin.close()
    else:
        os.kill(outer if victim == "outer" else inner, signal.SIGKILL)
    assert all_gone(pids[:-1] if victim == "both at once" else pids)
    os.kill(outer, signal.SIGCONT) if victim == "both at once" else None


def test_an_owner_that_is_killed_takes_everything_with_it(tmp_path):
    owner_code = f"""
    import os, subprocess, sys, time
    guard = subprocess.Popen([sys.executable, "-I", "-S", {GUARD!r}, str(os.getpid()), "0.3", {str(tmp_path / "run")!r},
        "--", sys.executable, "-I", "-S", "-c", {PRELUDE + STUBBORN_TREE + "stay()"!r}, {str(tmp_path)!r}],
        stdin=subprocess.PIPE, start_new_session=True)
    time.sleep(60)
    """
    owner = subprocess.Popen([*PYTHON, textwrap.dedent(owner_code)])
    files = [tmp_path / f"{name}.pid" for name in TREE]
    assert eventually(lambda: all(file.exists() for file in files))
    pids = [int(file.read_text()) for file in files] + guard.descendants(owner.pid)
    owner.kill()
    owner.wait(5)
    assert all_gone(pids)


def test_a_copy_of_the_pipe_elsewhere_does_not_hide_the_owners_death(tmp_path):
    """A process that the owner forked may hold the other end of the guard's stdin open for ever."""
    owner_code = f"""
    import os, subprocess, sys, time
    guard = subprocess.Popen([sys.executable, "-I", "-S", {GUARD!r}, str(os.getpid()), "0.3", {str(tmp_path / "run")!r},
        "--", sys.executable, "-I", "-S", "-c", {PRELUDE + "here('main'); stay()"!r}, {str(tmp_path)!r}],
        stdin=subprocess.PIPE, start_new_session=True)
    holder = os.fork()
    if holder:
        open({str(tmp_path / "holder")!r}, "w").write(str(holder))
    time.sleep(60)
    """
    owner = subprocess.Popen([*PYTHON, textwrap.dedent(owner_code)])
    assert eventually((tmp_path / "main.pid").exists) and eventually(lambda: (tmp_path / "holder").exists())
    main, holder = int((tmp_path / "main.pid").read_text()), int((tmp_path / "holder").read_text())
    owner.kill()
    owner.wait(5)
    try:
        assert alive(holder) and all_gone([main])
    finally:
        os.kill(holder, signal.SIGKILL)


def test_an_owner_that_is_gone_already_gets_no_engine(tmp_path):
    argv = [sys.executable, "-I", "-S", GUARD, "1", "1", str(tmp_path / "run"), "--", "/bin/touch", str(tmp_path / "x")]
    assert subprocess.run(argv, stdin=subprocess.PIPE, timeout=10, check=False).returncode == guard.CANNOT_START
    assert not (tmp_path / "x").exists()


def test_the_guard_loads_little():
    code = f"import runpy, sys; runpy.run_path({GUARD!r}); print(len(sys.modules))"
    assert int(subprocess.check_output([*PYTHON, code])) < 120

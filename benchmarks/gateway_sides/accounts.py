"""What processes cost: CPU time and memory, summed over everything that belongs to a side.

Owns: reading and adding up. Must not know: which processes those are, what they do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psutil

ROLES = {
    "haproxy": "haproxy",
    "Dispatcher": "dispatcher",
    "own-door": "own_door",
    ":gateway": "gateway",
    "ServeReplica": "replicas",
    "ServeController": "serve",
    "ProxyActor": "serve_proxy",
    "HAProxyManager": "serve_proxy",
}
REST = "rest"


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU seconds of one process so far, and what it is."""

    role: str
    cpu_s: float


Accounts = Mapping[tuple[int, float], Spent]
"""By process id and start time: an id may be taken again by another process."""


def read(pids: Iterable[int]) -> Accounts:
    """What these processes have used so far; those that are gone are left out."""
    accounts = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            with process.oneshot():
                times = process.cpu_times()
                spent = Spent(role_of(" ".join(process.cmdline())), times.user + times.system)
                accounts[pid, process.create_time()] = spent
    return accounts


def used_s(before: Accounts, after: Accounts) -> dict[str, float]:
    """CPU seconds between two readings, by role. A process born in between counts whole; one that ended is lost."""
    used: dict[str, float] = {}
    for key, spent in after.items():
        earlier_s = before[key].cpu_s if key in before else 0.0
        used[spent.role] = used.get(spent.role, 0.0) + spent.cpu_s - earlier_s
    return used


def role_of(command: str) -> str:
    """What a process does, by its title."""
    return next((role for mark, role in ROLES.items() if mark in command), REST)


def memory_mib(pids: Iterable[int]) -> dict[str, float]:
    """Resident memory, and the proportional one (shared pages are counted once)."""
    rss = pss = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            memory = psutil.Process(pid).memory_full_info()
            rss, pss = rss + memory.rss, pss + memory.pss
    return {"rss_mib": rss / 2**20, "pss_mib": pss / 2**20}


def tree(pid: int) -> set[int]:
    """A process and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return {pid, *(child.pid for child in root.children(recursive=True))}
    return set()


def runs_module(pid: int, module: str) -> bool:
    """Whether a process was started with `-m module`, directly or as what a guard was told to start."""
    with contextlib.suppress(psutil.Error):
        return module in psutil.Process(pid).cmdline()
    return False

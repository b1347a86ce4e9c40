"""A Ray cluster of several nodes on this machine, whose nodes come, go and are killed.

Role: `ray start` processes with labels. Owns: free ports, and the end of every process of every node, by pid.
Must not know: jobs, engines.

A node's processes are the descendants of its `ray start`, and those that carry its marker in their environment: neither
alone is enough, as Ray's workers overwrite their environment with a title, and orphans have lost their parents.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from batch_jobs.output.lock import process_start
from cluster.local import processes
from tests.support.stack import free_ports

START_TIMEOUT_S = 60.0
_RAY = Path(sys.executable).with_name("ray")
# A killed raylet is missed within about two seconds instead of twenty.
_IMPATIENT = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}


class Node:
    """One `ray start --block` and all that comes from it."""

    def __init__(self, log: Path, options: Sequence[str], num_cpus: int, labels: dict[str, str]) -> None:
        self.marker = uuid.uuid4().hex
        self.log = log
        self._seen: dict[int, str | None] = {}
        # A folder of its own: nodes that start together on one machine would take the same socket names. A short one:
        # socket paths have 107 characters.
        self._temp = Path(tempfile.mkdtemp(prefix="rn-", dir="/tmp"))
        pairs = ",".join(f"{name}={value}" for name, value in labels.items())
        command = [
            str(_RAY), "start", *options, "--block", "--disable-usage-stats", "--include-log-monitor=false",
            "--num-cpus", str(num_cpus), "--object-store-memory", str(100 << 20),
            "--dashboard-agent-listen-port", "0", "--temp-dir", str(self._temp),
            *(["--labels", pairs] if labels else []),
        ]  # fmt: skip
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        env |= _IMPATIENT | {"TRIBES_RUN": self.marker, "PATH": path, "RAY_worker_niceness": "0"}
        with log.open("w") as out:
            self.process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    @property
    def started(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return "--block" in self.log.read_text()

    def pids(self) -> list[int]:
        """Live processes of the node, those seen before among them."""
        self._seen |= {pid: process_start(pid) for pid in _descendants(self.process.pid)}
        self._seen |= {pid: process_start(pid) for pid in processes.marked_pids(self.marker)}
        return [pid for pid, start in self._seen.items() if start and process_start(pid) == start]

    def lose(self) -> None:
        """SIGKILL its raylet, as when a spot machine goes: its workers notice and end by themselves."""
        (raylet,) = [pid for pid in self.pids() if _executable(pid) == "raylet"]
        os.kill(raylet, signal.SIGKILL)

    def kill(self) -> None:
        """SIGKILL everything at once, and again what was being born meanwhile."""
        deadline_s = time.monotonic() + 20.0
        while pids := self.pids():
            assert time.monotonic() < deadline_s, f"processes {pids} do not end"
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            time.sleep(0.1)
        self.process.wait(10)
        shutil.rmtree(self._temp, ignore_errors=True)


class Nodes:
    """A head, which has no CPU for engines, and the nodes that joined it."""

    def __init__(self, folder: Path, port: int | None = None, head_cpus: int = 0) -> None:
        self._folder = folder
        self._port = port or free_ports(1)[0]
        self._nodes: list[Node] = []
        head = ["--head", "--port", str(self._port), "--include-dashboard=false"]
        self._start(head, head_cpus, {})
        self.wait()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def _start(self, options: list[str], num_cpus: int, labels: dict[str, str]) -> Node:
        log = self._folder / f"ray-node-{uuid.uuid4().hex[:6]}.log"
        node = Node(log, options, num_cpus, labels)
        self._nodes.append(node)
        return node

    def join(self, num_cpus: int = 1, **labels: str) -> Node:
        """Start a node; it joins by itself, `wait` waits for that."""
        return self._start(["--address", self.address], num_cpus, labels)

    def wait(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        for node in self._nodes:
            while node.process.poll() is None and not node.started:
                assert time.monotonic() < deadline_s, node.log.read_text()
                time.sleep(0.1)

    def leave(self, node: Node) -> None:
        node.kill()
        self._nodes.remove(node)

    def kill(self) -> None:
        """The whole cluster at once, the youngest nodes last."""
        for node in self._nodes:
            node.kill()
        self._nodes = []
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", self._port)) != 0, "the head still answers"


@contextmanager
def nodes(folder: Path, port: int | None = None, head_cpus: int = 0) -> Iterator[Nodes]:
    """A cluster, of which nothing is left at the end."""
    cluster = Nodes(folder, port, head_cpus)
    try:
        yield cluster
    finally:
        cluster.kill()


def _descendants(pid: int) -> Iterator[int]:
    """The process and all that descend from it."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in children.read_text().split():
                yield from _descendants(int(child))


def _executable(pid: int) -> str:
    with suppress(OSError):
        return Path(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()).name
    return ""

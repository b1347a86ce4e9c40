"""What a started group is to the benchmark, and processes as groups start them.

Owns: starting a process, waiting for its door, ending it with everything it started. Must not know: which peer it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.gateway_sides.load import Door

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.1
LOG_LINES = 30
ASK_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Up:
    """A started group."""

    doors: Mapping[str, Door]
    """By side."""
    pids: Callable[[], set[int]]
    """All its processes, without the engine."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What was started, in words or settings."""
    third: Mapping[str, Door] = field(default_factory=dict)
    """By side that has rivals: the door of a third tenant, measured with one request at a time while they load it."""


@contextlib.contextmanager
def process(command: list[str], env: Mapping[str, str], log: Path, cwd: Path | None = None) -> Iterator[int]:
    """The id of a running process in a session of its own; at the end nothing of that session is left."""
    with log.open("wb") as file:
        child = subprocess.Popen(
            command, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True, cwd=cwd,
        )  # fmt: skip
    try:
        yield child.pid
    finally:
        _end_session(child)


def wait_answering(door: Door, pid: int, log: Path) -> None:
    """Until a request through the door comes back whole; RuntimeError with the log's end when it does not."""
    deadline = time.monotonic() + START_TIMEOUT_S
    last = "it does not listen"
    while time.monotonic() < deadline and psutil.pid_exists(pid) and not _is_zombie(pid):
        if _listens(door.address):
            last = _try(door)
            if not last:
                return
        time.sleep(POLL_S)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
    raise RuntimeError(f"no answer from {door.base_url} ({last}); the log {log} ends with:\n{tail}")


def _try(door: Door) -> str:
    """Why a small request failed; empty when it was answered."""
    body = {"model": door.model, "messages": [{"role": "user", "content": "hello"}], "stream": True}
    headers = {"Authorization": f"Bearer {door.api_keys[0]}"}
    try:
        url = f"{door.base_url}/v1/chat/completions"
        answer = httpx.post(url, json=body, headers=headers, timeout=ASK_TIMEOUT_S)
    except httpx.HTTPError as error:
        return repr(error)
    return "" if answer.status_code == 200 and "[DONE]" in answer.text else f"{answer.status_code}: {answer.text[:300]}"


def _listens(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(address) == 0


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def _end_session(child: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_TIMEOUT_S)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # what the leader has left behind
    child.wait(STOP_TIMEOUT_S)

"""Role: an engine forked from a process that has imported it already, seen from the replica that asks for it.

Owns: the asking side of the fork host's protocol (`cluster/coldstart/fork_host.py` is the other): one connection to its
Unix socket for each engine. We send one line of JSON with the descriptor of a pipe for the engine's output, and get
`pid N`, the engine's guard. From then on the connection is to that guard and means what stdin means to other guards:
closed, it ends the tree; a byte is the number of a signal; `exit CODE` comes back. Must not know: what was imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import IO, Final

from cluster.engines.child import EngineChild
from cluster.engines.launch import LaunchSpec

HANDSHAKE_S: Final = 15.0
"""A fork takes milliseconds; the host may be busy with other starts."""
MODULE_AT: Final = 3
"""In argv, the arguments follow `python -m MODULE`."""


class ForkUnavailableError(RuntimeError):
    """There is no engine to be had from this fork host."""


class ForkedChild(EngineChild):
    """Made by `start`. Ends with its owner, whatever ends that, and does not need the fork host after its start."""

    _connection: socket.socket
    _pid: int

    @classmethod
    async def start(cls, host: Path, spec: LaunchSpec, log: logging.Logger, grace_s: float) -> ForkedChild:
        """An engine from the fork host that listens at `host`; ForkUnavailableError where it gives none."""
        child = cls(spec, log)
        try:
            child._write_files()
            asking = asyncio.to_thread(_ask, host, child._request(grace_s))
            child._connection, child._pid, output = await asking
        except (OSError, ValueError) as error:
            raise ForkUnavailableError(f"{type(error).__name__}: {error}") from error
        finally:
            if not hasattr(child, "_connection"):
                shutil.rmtree(child._run_dir, ignore_errors=True)
        child._follow(f"engine-{child.pid}", output, child._await_exit)
        return child

    @property
    def pid(self) -> int:
        return self._pid

    def _request(self, grace_s: float) -> bytes:
        request = {
            "args": self._argv()[MODULE_AT:],
            "env": self._own_environment(),
            "run_dir": str(self._run_dir),
            "grace_s": grace_s,
        }
        return json.dumps(request).encode() + b"\n"

    def _await_exit(self) -> int:
        """The engine's exit code; as if by SIGKILL where the guard could not tell it."""
        told = b""
        with contextlib.suppress(OSError):
            while chunk := self._connection.recv(4096):
                told += chunk
        words = told.decode(errors="replace").split()
        return int(words[1]) if len(words) == 2 and words[0] == "exit" else -signal.SIGKILL

    def _send(self, number: signal.Signals) -> None:
        try:
            if number == signal.SIGKILL:
                os.kill(self._pid, number)
            else:
                self._connection.send(bytes([number]))
        except OSError as error:
            self._log.debug("the guard %d is gone already: %s", self._pid, error)

    def _let_go(self) -> None:
        with contextlib.suppress(OSError):  # the guard may be gone
            self._connection.shutdown(socket.SHUT_RDWR)  # `close` alone would not wake the thread that waits on it
        self._connection.close()


def _ask(host: Path, request: bytes) -> tuple[socket.socket, int, IO[str]]:
    """The connection to the engine's guard, its pid, and the engine's output."""
    our_end, its_end = os.pipe()
    output = os.fdopen(our_end, encoding="utf-8", errors="replace")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(HANDSHAKE_S)
        connection.connect(str(host))
        sent = socket.send_fds(connection, [request], [its_end])
        connection.sendall(request[sent:])
        word, _, number = _line(connection).partition(" ")
        if word != "pid":
            raise ValueError(f"the fork host answered: {word} {number}")
        connection.settimeout(None)
        return connection, int(number), output
    except BaseException:
        connection.close()
        output.close()
        raise
    finally:
        os.close(its_end)


def _line(connection: socket.socket) -> str:
    """One line, a byte at a time: what follows belongs to who reads next."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError("the fork host closed the connection")
        line += byte
    return line.decode().strip()

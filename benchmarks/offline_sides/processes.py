"""The other sides' processes: started, asked, stopped while another side runs, ended with all they started.

Owns: their lives. Must not know: which case is measured.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIDE_TIMEOUT_S = 900.0


class VllmSide:
    """The process of offline_sides/vllm_side.py; stopped (SIGSTOP) between its runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._read()
        self._signal(signal.SIGSTOP)

    def run(self, prompts: Path, max_tokens: int) -> dict[str, Any]:
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": str(prompts), "max_tokens": max_tokens}) + "\n")
        self._process.stdin.flush()
        figures = self._read()
        self._signal(signal.SIGSTOP)
        return figures

    def _signal(self, number: int) -> None:
        os.killpg(self._process.pid, number)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        # An engine whose worker has died answers nothing for ever.
        watchdog = threading.Timer(SIDE_TIMEOUT_S, self._signal, (signal.SIGKILL,))
        watchdog.start()
        try:
            for line in self._process.stdout:
                if line.startswith("SIDE "):
                    figures: dict[str, Any] = json.loads(line.removeprefix("SIDE "))
                    return figures
        finally:
            watchdog.cancel()
        raise RuntimeError(f"the vLLM side ended, or took longer than {SIDE_TIMEOUT_S:g} s; run it by hand to see why")


@contextmanager
def vllm_side(model: str, args: dict[str, Any], env: dict[str, str]) -> Iterator[VllmSide]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.offline_sides.vllm_side", json.dumps({"model": model, **args})],
        env=os.environ | env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield VllmSide(process)
    finally:
        end_group(process)


def ray_data_side(
    model: str, args: dict[str, Any], env: dict[str, str], texts: Path, max_tokens: int
) -> dict[str, Any]:
    settings = {
        "model": model, "engine_args": args, "env": env,
        "prompts": str(texts), "max_tokens": max_tokens, "num_cpus": 8,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.offline_sides.ray_data_side", json.dumps(settings)],
        env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=SIDE_TIMEOUT_S)
    finally:
        end_group(process)
    (line,) = [line for line in output.splitlines() if line.startswith("SIDE ")]
    figures: dict[str, Any] = json.loads(line.removeprefix("SIDE "))
    return figures


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a side and every process it started."""
    for number in (signal.SIGCONT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        if number == signal.SIGTERM:
            time.sleep(5)
    process.wait(30)

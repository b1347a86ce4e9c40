"""Peers from the package index, each in an environment of its own in the user's cache: they pin what we do not want.

Owns: which versions, where they are, building them once. Must not know: how they are run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BUILD_TIMEOUT_S = 1200.0
_COMPLETE = "complete"


@dataclass(frozen=True, slots=True)
class Peer:
    """A package at a version; `extra`: of its extras, the one that has its server."""

    package: str
    version: str
    extra: str = ""

    @property
    def requirement(self) -> str:
        return f"{self.package}{f'[{self.extra}]' if self.extra else ''}=={self.version}"

    @property
    def folder(self) -> Path:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        tag = sys.implementation.cache_tag
        return cache / "tribes" / "benchmark-peers" / f"{self.package}-{self.version}-{tag}"


LITELLM = Peer("litellm", "1.106.2", "proxy")
VLLM_ROUTER = Peer("vllm-router", "0.1.17")
SGLANG_ROUTER = Peer("sglang-router", "0.3.2")


def ensure(peer: Peer, say: Callable[[str], None]) -> Path:
    """The peer's environment, built when it is not there yet. A half-built one is made anew."""
    folder = peer.folder
    if (folder / _COMPLETE).exists():
        return folder
    say(f"building the environment of {peer.requirement} in {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", peer.requirement])
    (folder / _COMPLETE).touch()
    return folder


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} failed; leave the side out with --side, or set up a package index:\n{done.stderr}"
        )

"""The run file: which cluster was started from a configuration. Owns: its format and place. Must not know: Ray."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.config import TribesConfig


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A started head: `marker` is in the environment of every process that came from it."""

    pid: int
    marker: str
    started_at_s: float
    ray_port: int
    dashboard_port: int
    gateway_port: int

    def is_alive(self) -> bool:
        try:
            environ = Path(f"/proc/{self.pid}/environ").read_bytes()
        except OSError:
            return False
        return f"TRIBES_RUN={self.marker}".encode() in environ.split(b"\0")


def run_path(config: TribesConfig) -> Path:
    return config.paths.data / "run.json"


def read_run(config: TribesConfig) -> RunInfo | None:
    """The run that the file names, alive or not; None when there is none."""
    try:
        return RunInfo(**json.loads(run_path(config).read_text()))
    except FileNotFoundError:
        return None


def write_run(config: TribesConfig, run: RunInfo) -> None:
    path = run_path(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(asdict(run), indent=1))
    temporary.replace(path)


def remove_run(config: TribesConfig) -> None:
    run_path(config).unlink(missing_ok=True)

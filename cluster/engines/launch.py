"""Role: say how one engine server is started. Owns: LaunchSpec and what all adapters share in building one.

Must not know: how processes are run (`supervisor.py`), nor any particular engine.
"""

from __future__ import annotations

import secrets
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cluster.config import EngineConfig

RUN_DIR: Final = "@RUN_DIR@"
"""In argv and env: the server's private folder (mode 0700), which is made for each start and goes with the engine."""


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One start of one engine server. Secrets stay out of its repr."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    host: str
    port: int
    api_key: str = field(repr=False)
    model_path: str
    served_model_name: str
    start_timeout_s: float = 600.0
    health_path: str = "/health"
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Name -> text of files that the supervisor writes into RUN_DIR (mode 0600) before the start."""

    @property
    def base_url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def new_api_key() -> str:
    """A key nobody else knows: only the gateway reaches the engine. Hexadecimal, so safe in argv, YAML and HTTP."""
    return secrets.token_hex(24)


def free_port(host: str) -> int:
    """A port nobody listens on now. Somebody may take it before the engine does: `EngineServer` then tries another."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def command(engine: EngineConfig, module: str) -> list[str]:
    """What comes before the arguments. `python` at the head of an entrypoint means the engine's interpreter."""
    python = str(Path(engine.python).expanduser()) if engine.python else sys.executable
    if engine.entrypoint is None:
        return [python, "-m", module]
    head, *rest = engine.entrypoint
    return [python if head == "python" else head, *rest]


def base_env(engine: EngineConfig, model_path: Path | str) -> dict[str, str]:
    """Environment additions every engine gets, below what its adapter and the deployment set."""
    # A local folder is complete; without this the libraries ask the Hub about it, and hang where there is no network.
    offline = {"HF_HUB_OFFLINE": "1"} if Path(model_path).is_absolute() and Path(model_path).is_dir() else {}
    return {**offline, **engine.env}

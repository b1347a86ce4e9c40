"""Role: say which rungs a deployment has on this machine, and what stands in the way of the others.

Owns: those conditions, and the reading of the machine. Must not know: how long a rung takes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cluster.coldstart.fork_server import plan_for
from cluster.coldstart.ladder import NAMES, Rung, RungName, choose
from cluster.config import DeploymentConfig
from cluster.engines.launch import LaunchSpec

GIB: Final = 2**30
HOST_BYTES: Final = GIB
"""What a fork host is assumed to take, with room to spare: docs/coldstart.md has the measurement."""
FREE_SHARE: Final = 0.5
"""Part of the memory that is free now that `start: auto` may hold for a faster start."""
GPU_DEVICE: Final = Path("/dev/nvidiactl")
NO_SNAPSHOT: Final = "Tribes does not restore snapshots of engines yet"


def rungs_of(deployment: DeploymentConfig, spec: LaunchSpec) -> list[Rung]:
    """Every rung of the ladder, in its order, with what keeps this deployment from it here."""
    problems: dict[RungName, str | None] = {
        "resident": None,
        "asleep": _no_sleep(deployment),
        "forked": _no_fork(deployment, spec),
        "snapshot": NO_SNAPSHOT,
        "cold": None,
    }
    return [Rung(name, problems[name]) for name in NAMES]


def auto_fork_fits() -> bool:
    """Whether `start: auto` means fork on a machine with the memory that is free here now."""
    forked = Rung("forked", held_bytes=HOST_BYTES)
    return choose([forked, Rung("cold")], int(available_bytes() * FREE_SHARE)) is forked


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Memory that new processes can have without pushing others out."""
    line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024


def _no_sleep(deployment: DeploymentConfig) -> str | None:
    if not deployment.resources.gpus:
        return "engines sleep by giving accelerator memory back, and this one has none (resources.gpus: 0)"
    if not GPU_DEVICE.exists():
        return "no GPU on this machine"
    return None


def _no_fork(deployment: DeploymentConfig, spec: LaunchSpec) -> str | None:
    if deployment.resources.gpus:
        return "only tried on CPUs"
    if plan_for(spec) is None:
        return "engine.entrypoint replaces the command that a fork host knows"
    return None

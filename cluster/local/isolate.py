"""The same cluster beside a running one. Owns: moving a configuration to free ports and a folder of its own.

For tests and benchmarks, which must not disturb what runs. Must not know: what they do with it.
"""

from __future__ import annotations

from pathlib import Path

from cluster.config import TribesConfig
from cluster.engines import free_port

LOOPBACK = "127.0.0.1"


def isolated(config: TribesConfig, folder: Path) -> TribesConfig:
    """`config` with its data in `folder` and every port free; models stay where they are."""
    plain = config.model_dump(mode="json")
    plain["gateway"]["port"] = free_port(LOOPBACK)
    if config.gateway.own_door.port is not None:
        plain["gateway"]["own_door"]["port"] = free_port(LOOPBACK)
    plain["ray"]["port"], plain["ray"]["dashboard_port"] = free_port(LOOPBACK), free_port(LOOPBACK)
    plain["paths"]["data"] = str(folder)
    plain["state"]["url"] = f"sqlite:///{folder}/state.db"
    return TribesConfig.model_validate(plain)

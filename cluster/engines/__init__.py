"""Role: run inference engines as supervised servers. Owns: the choice of the adapter for an engine kind.

An adapter says how its engine is started (`build_spec`), how busy it is (`read_load`) and which calls it takes at
which path (`engine_path`); `EngineServer` runs what it says, under a guard process that lets nothing outlive its owner.
Must not know: Ray, tenants, requests.
Importing this package loads no engine and no HTTP library.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cluster.engines import sglang, vllm
from cluster.engines.arguments import EngineConfigError
from cluster.engines.launch import LaunchSpec, free_port, new_api_key
from cluster.engines.metrics import EngineLoad, LoadUnavailableError
from cluster.engines.supervisor import EngineServer, EngineStartError, HealthPolicy

if TYPE_CHECKING:
    import aiohttp

    from cluster.config import DeploymentConfig

__all__ = [
    "EngineConfigError",
    "EngineLoad",
    "EngineServer",
    "EngineStartError",
    "HealthPolicy",
    "LaunchSpec",
    "LoadUnavailableError",
    "build_spec",
    "engine_path",
    "free_port",
    "new_api_key",
    "read_load",
    "takes_cache_salt",
]

_BUILD_SPEC = {"vllm": vllm.build_spec, "sglang": sglang.build_spec}
_READ_LOAD = {"vllm": vllm.read_load, "sglang": sglang.read_load}
_PATHS = {"vllm": vllm.PATHS, "sglang": sglang.PATHS}
_SALTED_PATHS = {"vllm": vllm.SALTED_PATHS, "sglang": sglang.SALTED_PATHS}


def build_spec(
    deployment: DeploymentConfig,
    model_name: str,
    model_path: Path | str,
    host: str,
    port: int,
    api_key: str,
    *,
    max_model_len: int | None = None,
    revision: str | None = None,
) -> LaunchSpec:
    """How to start this deployment's engine on a model: a local folder, or the id of a repository on the Hub.

    `max_model_len` and `revision` are the model's; `engine.args` may say otherwise.
    """
    build = _BUILD_SPEC[deployment.engine.kind]
    return build(
        deployment, model_name, model_path, host, port, api_key, max_model_len=max_model_len, revision=revision
    )


async def read_load(kind: str, session: aiohttp.ClientSession, base_url: str, api_key: str) -> EngineLoad:
    """What an engine of this kind is doing now; raises LoadUnavailableError when it does not say."""
    return await _READ_LOAD[kind](session, base_url, api_key)


def takes_cache_salt(kind: str, path: str) -> bool:
    """Whether bodies sent to what clients find at `path` may carry `cache_salt`, and it is obeyed."""
    return path in _SALTED_PATHS[kind]


def engine_path(kind: str, path: str) -> str | None:
    """Where an engine of this kind has what clients find at `path`; None where it has nothing like it."""
    return _PATHS[kind].get(path)

"""Role: turn paths as written into paths that mean the same in every process. Owns: `~`, relative paths, {paths.data}.

Must not know: YAML, or whether the folders exist.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from cluster.config.deployments import DeploymentConfig
from cluster.config.models import LocalFolder, ModelConfig
from cluster.config.regions import RegionConfig
from cluster.config.services import FilesConfig, PathsConfig, RayConfig, StateConfig
from cluster.config.upstreams import SecretRef, UpstreamConfig

DATA_PLACEHOLDER: Final = "{paths.data}"

_SQLITE_FILE = re.compile(r"(?P<scheme>sqlite(?:\+\w+)?:///)(?P<path>[^/:?][^:?]*)(?P<query>\?.*)?")


def absolute(path: Path | str, base: Path) -> Path:
    """The path with `~` expanded and `..` folded, starting at `base` when relative.

    Symbolic links stay: a virtual environment's `bin/python` is a link, and following it would leave the environment.
    """
    return Path(os.path.normpath(base / Path(path).expanduser()))


def resolve_paths(paths: PathsConfig, base: Path) -> PathsConfig:
    return paths.model_copy(update={"data": absolute(paths.data, base), "models": absolute(paths.models, base)})


def resolve_state(state: StateConfig, data: Path, base: Path) -> StateConfig:
    """Substitute the data folder, and anchor a relative SQLite file: Ray processes have different working folders."""
    url = state.url.replace(DATA_PLACEHOLDER, str(data))
    if match := _SQLITE_FILE.fullmatch(url):
        url = f"{match['scheme']}{absolute(match['path'], base)}{match['query'] or ''}"
    return state.model_copy(update={"url": url})


def resolve_files(files: FilesConfig, data: Path, base: Path) -> FilesConfig:
    url = files.url.replace(DATA_PLACEHOLDER, str(data))
    return files.model_copy(update={"url": url if "://" in url else str(absolute(url, base))})


def resolve_ray(ray: RayConfig, base: Path) -> RayConfig:
    return ray if ray.temp_dir is None else ray.model_copy(update={"temp_dir": absolute(ray.temp_dir, base)})


def resolve_model(model: ModelConfig, base: Path) -> ModelConfig:
    if not isinstance(model.source, LocalFolder):
        return model
    source = model.source.model_copy(update={"path": absolute(model.source.path, base)})
    return model.model_copy(update={"source": source})


def resolve_deployment(deployment: DeploymentConfig, base: Path) -> DeploymentConfig:
    """Anchor the engine's interpreter; a bare name such as `python3.12` is left for PATH to find on the node."""
    python = deployment.engine.python
    if python is None or os.sep not in python:
        return deployment
    engine = deployment.engine.model_copy(update={"python": str(absolute(python, base))})
    return deployment.model_copy(update={"engine": engine})


def resolve_upstream(upstream: UpstreamConfig, base: Path) -> UpstreamConfig:
    if upstream.api_key is None:
        return upstream
    return upstream.model_copy(update={"api_key": resolve_secret(upstream.api_key, base)})


def resolve_region(region: RegionConfig | None, base: Path) -> RegionConfig | None:
    if region is None:
        return None
    peers = {
        name: peer.model_copy(
            update={
                "probe_key": resolve_secret(peer.probe_key, base),
                "keys": {tenant: resolve_secret(ref, base) for tenant, ref in peer.keys.items()},
            }
        )
        for name, peer in region.peers.items()
    }
    return region.model_copy(update={"peers": peers})


def resolve_secret(secret: SecretRef, base: Path) -> SecretRef:
    return secret if secret.file is None else secret.model_copy(update={"file": absolute(secret.file, base)})

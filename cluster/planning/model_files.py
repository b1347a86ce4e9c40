"""Role: where a model's config.json is. Owns: looking in folders that exist. Must not know: what is in it; it fetches
nothing, so that planning works without a network.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cluster.config import HuggingFace, LocalFolder, ModelSource, PackageGGUF, PathsConfig
from cluster.planning.facts import ModelFacts, ModelFactsError, facts_from_config

CONFIG_NAME = "config.json"


def read_facts(path: Path) -> ModelFacts:
    """Of a config.json, or of the folder that holds one."""
    file = path / CONFIG_NAME if path.is_dir() else path
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFactsError(f"{file} cannot be read: {error.strerror}; name a model's config.json") from error
    except ValueError as error:
        raise ModelFactsError(f"{file} is not JSON: {error}; name a model's config.json") from error
    if not isinstance(content, dict):
        raise ModelFactsError(f"{file} is not a JSON object; name a model's config.json")
    return facts_from_config(content)


def find_config(name: str, source: ModelSource, paths: PathsConfig) -> Path:
    """The config.json of a model of a configuration, if it is on this machine."""
    found: Path | None = None
    match source:
        case LocalFolder():
            found = source.path / CONFIG_NAME
        case HuggingFace():
            found = _newest(_hub() / f"models--{source.id.replace('/', '--')}" / "snapshots", f"*/{CONFIG_NAME}")
        case PackageGGUF() | _:
            from cluster.models.ready_folder import folder_name

            stem = folder_name(name, "").rstrip("-")
            found = _newest(paths.models.expanduser(), f"{stem}-*/{CONFIG_NAME}")
    if found is None or not found.is_file():
        raise ModelFactsError(
            f"{name}: its config.json is not on this machine yet; download that one file and name it as model.config "
            "in the workload"
        )
    return found


def _newest(folder: Path, pattern: str) -> Path | None:
    files = sorted(folder.glob(pattern), key=lambda file: file.stat().st_mtime) if folder.is_dir() else []
    return files[-1] if files else None


def _hub() -> Path:
    home = os.environ.get("HF_HOME")
    return Path(os.environ.get("HF_HUB_CACHE") or (Path(home) if home else Path.home() / ".cache/huggingface") / "hub")

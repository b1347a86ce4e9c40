"""Small configurations that tests bend until they break."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import ConfigError, load_config

_VALID: dict[str, Any] = {
    "models": {"tiny": {"source": {"kind": "local", "path": "weights"}}},
    "deployments": {"tiny-online": {"model": "tiny", "serves": ["online"], "engine": {"kind": "sglang"}}},
}


def valid() -> dict[str, Any]:
    """The smallest valid configuration, fresh for each caller."""
    return copy.deepcopy(_VALID)


def changed(path: str, value: Any) -> dict[str, Any]:
    """The smallest valid configuration with the key at `a/b/c` set; sections on the way are made."""
    data = valid()
    *parents, last = path.split("/")
    section = data
    for name in parents:
        section = section.setdefault(name, {})
    section[last] = value
    return data


def write(folder: Path, content: str | dict[str, Any]) -> Path:
    path = folder / "tribes.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def problems_of(folder: Path, content: str | dict[str, Any]) -> list[str]:
    """What load_config says about the content, one line each, without the line numbers."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, content))
    return [str(problem).rsplit(" (line ", 1)[0] for problem in caught.value.problems]

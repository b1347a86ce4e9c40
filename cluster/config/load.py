"""Role: from a file to a TribesConfig, or to every reason why not. Owns: reading, and putting problems in file order.

Must not know: any particular section.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.config.checks import cross_problems
from cluster.config.errors import ConfigError, Problem
from cluster.config.explain import explain
from cluster.config.resolve import absolute
from cluster.config.root import TribesConfig
from cluster.config.source import Document, parse


def load_config(path: Path | str) -> TribesConfig:
    """Read and check a configuration file. Raises ConfigError with every problem in it."""
    source = absolute(path, Path.cwd())
    document = parse(_read(source))
    problems = list(document.problems)
    config = None
    if isinstance(document.data, dict):
        config, invalid = _validate(document.data, source)
        problems += invalid
    elif not problems:
        what = "is empty" if document.data is None else "is not a mapping of keys"
        problems.append(Problem((), f"the file {what}; it needs at least the sections models and deployments"))
    if problems or config is None:
        raise ConfigError(_in_file_order(problems, document), source)
    return config


def _read(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _unreadable(source, "there is no such file; check the path given as the configuration") from None
    except IsADirectoryError:
        raise _unreadable(source, "this is a folder; name the configuration file in it") from None
    except UnicodeDecodeError as error:
        raise _unreadable(source, f"not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except OSError as error:
        raise _unreadable(source, f"cannot be read: {error.strerror}; check its permissions") from None


def _unreadable(source: Path, message: str) -> ConfigError:
    return ConfigError([Problem((), message)], source)


def _validate(data: dict[Any, Any], source: Path) -> tuple[TribesConfig | None, list[Problem]]:
    own_key = [Problem(("source_path",), "unknown key; remove it")] if "source_path" in data else []
    try:
        return TribesConfig.model_validate({**data, "source_path": source}), own_key
    except ValidationError as error:
        # Pydantic stops before the cross-field rules when a shape is wrong: run them here, so that nothing is hidden.
        return None, own_key + explain(error, TribesConfig) + cross_problems(data)


def _in_file_order(problems: Iterable[Problem], document: Document) -> list[Problem]:
    placed = [replace(item, line=document.line_of(item.path)) if item.line is None else item for item in problems]
    unique = dict.fromkeys(placed)
    return sorted(unique, key=lambda problem: problem.line or 0)

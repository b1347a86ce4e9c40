"""Role: one entry for all model sources: `prepare_model` says what an engine is to be given as its model.

Owns: which source is prepared how, and the names of cached folders' models. Must not know: how a folder becomes ready
(ready_folder.py), how weights are converted or fetched (package_gguf.py, object_store.py), engines, Ray.
Blocking (seconds to hours the first time): call it from a thread where an event loop runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from cluster.config import S3, HuggingFace, LocalFolder, ModelConfig, PackageGGUF, PathsConfig
from cluster.models.object_store import download_model
from cluster.models.package_gguf import convert_model
from cluster.models.ready_folder import ModelError, folder_problem


@dataclass(frozen=True)
class PreparedModel:
    """A model as an engine's command line takes it."""

    name: str
    """The public id of the model in the configuration."""
    path_or_id: str
    """An absolute folder, or the id of a repository on the hub, which the engine itself downloads."""
    revision: str | None = None
    """Of a hub repository; None = its default branch."""

    @property
    def folder(self) -> Path | None:
        """The local folder; None where the engine downloads the model."""
        path = Path(self.path_or_id)
        return path if path.is_absolute() else None


def prepare_model(
    name: str, model: ModelConfig, paths: PathsConfig, progress: Callable[[str], None] = lambda message: None
) -> PreparedModel:
    """Make `model` loadable on this node and say where it is. Repeated and concurrent calls do the work once.

    `progress` gets a line whenever something slow starts or ends. Raises ModelError, which names the cure.
    """
    source = model.source
    cache = paths.models.expanduser().absolute()
    match source:
        case HuggingFace():
            return PreparedModel(name, source.id, source.revision)
        case LocalFolder():
            return PreparedModel(name, str(checked_folder(name, source.path)))
        case PackageGGUF():
            return PreparedModel(name, str(convert_model(name, source, cache, progress)))
        case S3():
            return PreparedModel(name, str(download_model(name, source.url, cache, progress)))
        case _:
            assert_never(source)


def checked_folder(name: str, path: Path) -> Path:
    """The absolute path of a folder that the operator put in place, if it looks like a model."""
    folder = path.expanduser().absolute()
    problem = folder_problem(folder)
    if problem:
        raise ModelError(
            f"models.{name}.source.path: {folder} {problem}. Give the folder that holds config.json and the weights "
            "(a Hugging Face snapshot); every node that runs this model must see it under the same path."
        )
    return folder

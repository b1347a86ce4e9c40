"""Role: step models that were measured, and where they are kept. Owns: the file of one, and finding the one that fits.

One JSON file each, under `$XDG_CACHE_HOME/tribes/calibrations` (`~/.cache` if unset): they belong to machines, not to a
configuration. What replaces what is decided by the name, which says everything that the constants depend on.
Must not know: how one is measured, what it is used for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.planning.shape import Shape
from cluster.simulation.step_model import StepModel


class CalibrationError(ValueError):
    """A file that is not a calibration; the message names it and the cure."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A step model measured for one model on one shape of replica."""

    model: str
    shape: Shape
    step: StepModel
    request_s: float
    kv_tokens: int | None
    """Of the engine's cache; None = it did not tell."""
    mean_error: float
    worst_error: float
    samples: int
    measured_at: str
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its file."""
        words = [self.model, self.shape.engine, self.shape.title, "fp8-cache" if self.shape.fp8_cache else ""]
        text = " ".join(word for word in words if word)
        # Two ids that differ only in such a character must not share a file.
        mark = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{re.sub(r'[^A-Za-z0-9.]+', '-', text)}-{mark}"


def calibrations_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tribes" / "calibrations"


def save(calibration: Calibration, folder: Path) -> Path:
    """Replaces an older one of the same name, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{calibration.name}.json"
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".unfinished", delete=False, encoding="utf-8") as handle:
        json.dump(asdict(calibration), handle, indent=2)
        handle.write("\n")
    Path(handle.name).replace(path)
    return path


def read(path: Path) -> Calibration:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Calibration(**{**data, "shape": Shape(**data["shape"]), "step": StepModel(**data["step"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CalibrationError(f"{path} is not a calibration ({error}); remove it, and calibrate again") from error


def read_all(folder: Path) -> list[Calibration]:
    return [read(path) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []


def matching(calibrations: Iterable[Calibration], model: str, shape: Shape) -> Calibration | None:
    """The one for exactly this model and shape: constants of another would be a guess in a measurement's clothes."""
    return next((item for item in calibrations if item.model == model and item.shape == shape), None)

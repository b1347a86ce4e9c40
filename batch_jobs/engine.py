"""What a job needs of an engine, whichever it is.

Role: the seam between the actor and an engine library. Owns: the words both sides use.
Must not know: any engine library, Ray, files.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any, Protocol

from batch_jobs.parts import Result
from batch_jobs.rows import Prompt

VLLM_ENGINE = "batch_jobs.vllm_engine:VllmEngine"


@dataclass(frozen=True)
class Sampling:
    """What the user asked for; None leaves the model's own default."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class EngineSettings:
    """Plain data from which an engine process builds its engine."""

    model: str
    model_config: dict[str, Any]
    paths: dict[str, Any]
    engine_args: dict[str, Any] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=Sampling)


class EngineDied(Exception):
    """The engine cannot answer anything any more; its process must be replaced."""


class OfflineEngine(Protocol):
    """Built from EngineSettings (which may take minutes and may raise), then used from one event loop."""

    async def generate(self, row_id: str, prompt: Prompt) -> Result:
        """Raises RowError when this row cannot be answered and EngineDied when none can."""
        ...


def load_engine(import_path: str, settings: EngineSettings) -> OfflineEngine:
    """Build the engine named `module:Class`."""
    module, _, name = import_path.partition(":")
    engine: OfflineEngine = getattr(importlib.import_module(module), name)(settings)
    return engine

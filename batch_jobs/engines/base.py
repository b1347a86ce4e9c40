"""What a job needs of an engine, whichever it is: the OpenAI API, called as a function.

Role: the seam between the actor and an engine library. Owns: the words both sides use.
Must not know: any engine library, Ray, files, tasks.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any, Protocol

VLLM_ENGINE = "batch_jobs.engines.vllm_engine:VllmEngine"


@dataclass(frozen=True, slots=True)
class Ask:
    """One call of an engine: a path of its OpenAI-compatible API and the JSON body."""

    path: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer: an HTTP status and the JSON body. From 400 on the body is `{"error": {"message", "type", ...}}`."""

    status: int
    body: dict[str, Any]

    @property
    def ok(self) -> bool:
        return self.status < 400


@dataclass(frozen=True)
class EngineSettings:
    """Plain data from which an engine process builds its engine."""

    model: str
    model_config: dict[str, Any]
    paths: dict[str, Any]
    engine_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineLimits:
    """What an engine that has started can hold."""

    max_running: int
    """Requests that it runs at once."""
    kv_tokens: int | None = None
    """Tokens that its KV cache holds; None where it has none or does not say."""
    max_model_len: int | None = None
    """Tokens of the longest request, prompt and answer."""
    paths: tuple[str, ...] | None = None
    """Paths that it answers; None where it does not say."""


class EngineDied(Exception):
    """The engine cannot answer anything any more; its process must be replaced."""


class OfflineEngine(Protocol):
    """Built from EngineSettings (which may take minutes and may raise), then used from one event loop."""

    async def start(self) -> EngineLimits:
        """Finish starting, on the loop that `ask` will be called from. Called once."""
        ...

    async def ask(self, ask: Ask) -> Reply:
        """Raises EngineDied. Cancelling the task takes the request out of the engine."""
        ...


def load_engine(import_path: str, settings: EngineSettings) -> OfflineEngine:
    """Build the engine named `module:Class`."""
    module, _, name = import_path.partition(":")
    engine: OfflineEngine = getattr(importlib.import_module(module), name)(settings)
    return engine

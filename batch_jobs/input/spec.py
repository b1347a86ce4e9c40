"""What is asked of every row: the task, the prompts, the parameters.

Role: the job's request in plain data, the same for every row. Owns: the tasks. Must not know: rows, files, engines.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Task(StrEnum):
    """What a job computes for each row."""

    GENERATE = "generate"
    EMBED = "embed"
    SCORE = "score"
    CLASSIFY = "classify"

    @property
    def generates(self) -> bool:
        """Whether the answer is text of a length that nobody knows before."""
        return self is Task.GENERATE


@dataclass(frozen=True)
class PromptTemplate:
    """A Jinja2 template over the row's columns; its text becomes the prompt (or the user's message)."""

    name: str
    source: str


@dataclass(frozen=True)
class JobSpec:
    """Everything that an answer depends on beside the row and the model."""

    model: str = ""
    task: Task = Task.GENERATE
    prompts: tuple[PromptTemplate, ...] = ()
    """None: the row's own `prompt`, `messages`, `prompts` or OpenAI batch request."""
    system: str | None = None
    """Template of a system message; makes prompts chats."""
    chat: bool = False
    """Whether template prompts are sent as a chat's user message."""
    params: dict[str, Any] = field(default_factory=dict)
    """Fields of the OpenAI request body for every row; a row's `params` column wins."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters that a row may name instead of the model. Empty: the engine decides about a `lora` column, and an
    OpenAI batch request can name the model alone."""
    openai_batch: bool = False
    """Whether the rows are OpenAI batch requests (`custom_id`, `url`, `body`), each with parameters of its own."""

    @property
    def id_column(self) -> str:
        return "custom_id" if self.openai_batch else "id"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"task": self.task.value}
